"""Built-in data: the images of the demo and the digits of the toy experiment."""

from ribseg.data.demo.images import make_demo_dataset as make_demo_dataset

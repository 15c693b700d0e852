"""Built-in data: the demo's images and the toy experiment's digits."""

from ribseg.data.demo.images import make_demo_dataset as make_demo_dataset

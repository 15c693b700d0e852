"""Stages without networks and images: what a store does with them is seen in milliseconds.

`numbers` stands for a training, `files` makes a file for each id, as maps are made, and `total` reads them.
"""

import json

from ribseg.store.artefact import Store
from ribseg.store.digest import as_given
from ribseg.store.run import Run
from ribseg.store.shards import Shard
from ribseg.store.stage import ImageStage, Stage

ALL = ("numbers", "files", "total")


class Session:
    """What the toy stages share.

    Args:
        folder: of the store.
        factor: a setting.
        data: fingerprint of the data.
        ids: of the files.
        die: stage -> called when its work begins, for each file of `files`; what it raises ends the run.

    Attributes:
        did: what the stages have done, in order.
    """

    resolve = staticmethod(as_given)
    processes = 1  # of a Trainer

    def __init__(self, folder, factor=2, data="data", ids="abcdefg", die=None):
        self.store, self.factor, self.fingerprint, self.ids = Store(folder), factor, data, list(ids)
        self.die, self.did = die or {}, []

    def say(self, text, name=""):
        self.did.append(text.strip())

    def track(self, items, title, total):
        return items

    def part(self):
        """What this process does is seen in its files alone."""

    def begin(self, what):
        self.die.get(what.partition(" ")[0], lambda: None)()
        self.did.append(what)


class Numbers(Stage):
    name = "numbers"

    def settings(self):
        return {"factor": self.session.factor}

    def data(self):
        return self.session.fingerprint

    def complete(self, artefact):
        return (artefact.folder / "numbers.json").is_file()

    def work(self, target):
        self.session.begin("numbers")
        target.folder.mkdir(parents=True, exist_ok=True)
        (target.folder / "numbers.json").write_text(json.dumps({"factor": self.session.factor}))
        return {"numbers": 1}


class Files(ImageStage):
    name = "files"

    def __init__(self, session, numbers):
        super().__init__(session)
        self.numbers = numbers

    def inputs(self):
        return [self.numbers]

    def settings(self):
        return {}

    def data(self):
        return ""

    def ids(self):
        return self.session.ids

    def missing(self, target, ids):
        return [name for name in ids if not (target.folder / f"{name}.txt").is_file()]

    def make(self, target, ids):
        factor = json.loads((self.numbers.artefact.folder / "numbers.json").read_text())["factor"]
        for name in ids:
            self.session.begin(f"files {name}")
            (target.folder / f"{name}.txt").write_text(str(factor * ord(name)))

    def work(self, target):
        self.session.begin("finish files")
        return {"files": len(self.session.ids)}


class Total(Stage):
    name = "total"

    def __init__(self, session, files):
        super().__init__(session)
        self.files = files

    def inputs(self):
        return [self.files]

    def settings(self):
        return {}

    def data(self):
        return ""

    def complete(self, artefact):
        return True

    def work(self, target):
        self.session.begin("total")
        place = self.files.artefact.folder
        return {"total": sum(int((place / f"{name}.txt").read_text()) for name in self.session.ids)}


class Done:
    """What a run of the toy stages has done.

    Attributes:
        did: what the stages did, in order.
        said: the lines, with the names before them.
        stages: name -> stage.
    """

    def __init__(self, session, said, stages):
        self.did, self.said, self.stages = session.did, said, {stage.name: stage for stage in stages}

    def facts(self, name):
        return self.stages[name].artefact.facts

    def folder(self, name):
        return self.stages[name].artefact.folder

    @property
    def reruns(self):
        return {name: stage.artefact.reruns for name, stage in self.stages.items()}


def toy_run(folder, run=ALL, rerun=(), shard=None, engine=None, check=None, **session):
    """Runs toy stages over a store in a folder; see `Session` for the other arguments."""
    shared, said = Session(folder, **session), []
    numbers = Numbers(shared)
    files = Files(shared, numbers)
    stages = [numbers, files, Total(shared, files)]
    if check is not None:
        stages[-1].check = check

    def say(text, name="", style=""):
        said.append(f"{name}: {text}" if name else text)

    chosen = Run(stages, list(run), rerun, shard=Shard.parse(shard), engine=engine, say=say)
    try:
        chosen.plan(stages)
        chosen.check()
        chosen.compute()
    except BaseException as error:
        error.done = Done(shared, said, stages)
        raise
    return Done(shared, said, stages)

"""Options are defined once: a command's options are the fields of the dataclass that Python takes."""

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import deepres
import deepres.paper.lab
from deepres.cli.main import command, main
from deepres.cli.parsing import parse
from deepres.cli.train import Train
from deepres.detection.combining import CombinedDetector
from deepres.detection.options import DrawOptions, PassOptions
from deepres.detection.predicting import write_detections
from deepres.models.options import NetOptions
from deepres.options import DeviceOption
from deepres.serve import Limits
from deepres.training import Run


def parsed(name: str, *args: str) -> object:
    return parse(command(name), f"deepres {name}", args)


def test_every_field_of_a_run_is_an_option_of_train() -> None:
    numbers = {"epochs": 2.0, "batch": 8, "lr": 0.1, "exits": 0.5, "width": 0.5, "size": 16, "workers": 1, "keep": 3, "seed": 7}
    words = {
        "net": "resnet8-cifar",
        "data": "cifar10",
        "out": "x",
        "init": "y",
        "tokens": "bpe:300",
        "speed": "exact",
        "memory": "3GiB",
        "device": "cpu",
    }
    given = {**numbers, **words, "checkpoint_minutes": 1.0, "recipe": "digits"}
    flags = ["--sync-norm", "--watch-test"]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    assert {*given, "sync_norm", "watch_test", "options"} == {field.name for field in dataclasses.fields(Run)}
    train = parsed("train", *options, *flags, "--dropout", "0.1", "--shortcut", "B")
    assert isinstance(train, Train)
    assert train._run() == Run(**given, sync_norm=True, watch_test=True, options={"dropout": 0.1, "shortcut": "B"})  # type: ignore[arg-type]
    for field in dataclasses.fields(Run):  # and the defaults are the same, where the command line does not leave them open
        if field.name not in ("net", "recipe", "out", "options"):
            assert getattr(Train(), field.name) == field.default


def test_limits_in_the_units_of_the_command_line() -> None:
    options = ("--batch=2", "--wait=5", "--queue=3", "--timeout=4", "--call-timeout=6", "--body=0.5", "--pixels=2")
    found = parsed("serve", "model", *options)
    assert found.limits == Limits(2, 0.005, 3, 4.0, 6.0, 500_000, 2_000_000)  # type: ignore[attr-defined]
    assert parsed("serve", "model").limits == Limits()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("serve", "model", "--batch", "0"), "batch is at least 1"),
        (("serve", "model", "--call-timeout", "0"), "call-timeout is above 0"),
        (("serve", "model", "--wait", "-1"), "wait is at least 0"),
        (("serve", "nothing", "--port", "0"), "nothing: no such file"),
        (("look",), "which network"),
        (("look", "resnet8-cifar", "--examples", "1"), "--examples is at least 2"),
        (("shrink",), "which network"),
        (("shrink", "resnet8-cifar", "--target", "speed=2"), "'speed=2' is not a target"),
        (("shrink", "resnet8-cifar", "--target", "time=2"), "between 0 and 1"),
        (("ghost", "resnet8-cifar"), "give --budget"),
        (("ghost", "resnet8-cifar", "--budget", "0.5"), "no such run or file"),
        (("evaluate",), "which network"),
        (("predict", "nothing", "image.png"), "no such file"),
        (("optimize", "resnet9000x"), "unknown network 'resnet9000x'"),
        (("pack", "nothing"), "no such folder"),
        (("paper", "nothing"), "unknown experiment 'nothing'"),
        (("paper", "all", "--budget", "soon"), "--budget is a time"),
        (("degrade", "--seeds", "0"), "seeds is the number of trainings of each network and at least 1"),
        (("train", "--net", "resnet8-cifar", "--keep", "0"), "keep is the number of checkpoints to keep and at least 1"),
        (("train", "--net", "resnet8-cifar", "--memory", "much"), "memory is neither 'auto' nor 'all'"),
    ],
)
def test_a_wrong_input_gets_one_sentence_and_exit_code_2(
    args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(list(args)) == 2
    err = capsys.readouterr().err
    assert err.startswith("deepres: ") and err.count("\n") == 1 and says in err, err


# command -> the Python functions that take its options as keywords
FUNCTIONS = {
    "look": (deepres.lens.look, deepres.models.open_with_data),
    "pack": (deepres.data.pack,),
    "evaluate": (deepres.evaluate,),
    "predict": (deepres.predict,),
    "degrade": (deepres.paper.degrade,),
    "paper": (deepres.paper.lab.ExperimentScale.changed,),
    "serve": (deepres.serve.serve,),
    "shrink": (deepres.shrink,),
    "ghost": (deepres.ghost,),
    "optimize": (deepres.optimize, deepres.models.open_with_data),
    "export": (deepres.export,),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_of_a_command_are_keywords_of_the_function(name: str) -> None:
    kind = command(name)
    bases = [
        base
        for base in kind.__mro__[1:]
        if dataclasses.is_dataclass(base) and not base.__module__.startswith("deepres.cli") and base is not DeviceOption
    ]
    inherited = {field.name: field.default for base in bases for field in dataclasses.fields(base)}
    parameters = [one for function in FUNCTIONS[name] for one in inspect.signature(function).parameters.values()]
    keywords = {one.name: one.default for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY}
    assert inherited and inherited == {key: keywords[key] for key in inherited}
    own = {field.name for field in dataclasses.fields(kind)} - inherited.keys()  # those that only the command line has
    # a function leaves a model where it is, and a command chooses the device; `out` has a default in the command alone, and
    # `resume` is a folder there; `optimize` takes data that the command has opened
    assert own.isdisjoint(keywords.keys() - {"data", "device", "out", "resume"})


@pytest.mark.parametrize(
    ("kind", "function"), [(PassOptions, CombinedDetector.__init__), (DrawOptions, write_detections)], ids=["passes", "drawing"]
)
def test_options_of_detectors_are_keywords_too(kind: type, function: Callable[..., object]) -> None:
    keywords = inspect.signature(function).parameters
    for field in dataclasses.fields(kind):
        assert keywords[field.name].kind is inspect.Parameter.KEYWORD_ONLY and keywords[field.name].default == field.default


def test_options_of_a_network_are_fields_of_its_configuration() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(deepres.nn.ResNetConfig)}
    for field in dataclasses.fields(NetOptions):
        assert field.default in (None, fields[field.name])  # None: the network's usual value
    assert issubclass(command("train"), NetOptions) and issubclass(command("info"), NetOptions)
    assert (
        NetOptions(survival=0.5, shortcut="A").changes() == {"survival": 0.5, "shortcut": "A"} and NetOptions().changes() == {}
    )


def test_help_of_every_command_imports_no_torch() -> None:
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name not in ("torch", "numpy"), f"{name} is imported"
sys.meta_path.insert(0, Refuse())
from deepres.cli.main import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0, name
    else:
        raise AssertionError(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_info_without_a_network_describes_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"deepres {deepres.__version__}" in out and f"torch {torch.__version__.split('+')[0]}" in out and "GPU" in out

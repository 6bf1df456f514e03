from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from kubetorch_jupyter import images
from kubetorch_jupyter.errors import ConfigError
from kubetorch_jupyter.image import Image, Step


def test_every_method_gives_a_new_image() -> None:
    base = Image("base")
    more = base.pip_install(["numpy>=2", "--pre torch"], force=True).run_bash("apt-get update").copy("./data", "/data")
    more = more.sync_package("./pkg").set_env_vars({"N": 1})
    assert base == Image("base")
    assert [step.kind for step in more.steps] == ["pip", "pip", "bash", "copy", "sync", "env"]
    assert more.steps[0] == Step("pip", "numpy>=2", force=True)
    assert more == pickle.loads(pickle.dumps(more))
    assert hash(more) == hash(pickle.loads(pickle.dumps(more)))
    assert Image().pip_install("one") == Image().pip_install(["one"])


def test_from_docker_on_the_class_and_on_an_image() -> None:
    assert Image.from_docker("python:3.12") == Image().from_docker("python:3.12") == Image(image_id="python:3.12")
    assert Image("mine").run_bash("true").from_docker("x:1").name == "mine"
    assert "container image" in (Image.from_docker.__doc__ or "")
    with pytest.raises(ConfigError, match="already based on a:1"):
        Image.from_docker("a:1").from_docker("b:1")


def test_environment_variables_refer_to_earlier_ones() -> None:
    image = (
        Image()
        .set_env_vars({"BASE": "/opt", "BIN": "$BASE/bin", "PATH": "$BIN:${PATH}", "N": 1})
        .set_env_vars({"BASE": "/usr", "LATER": "$BASE", "NONE": "$NOWHERE", "DOLLAR": r"\$BASE"})
    )
    assert image.env({"PATH": "/bin"}) == {
        "BASE": "/usr",
        "BIN": "/opt/bin",
        "PATH": "/opt/bin:/bin",
        "N": "1",
        "LATER": "/usr",
        "NONE": "$NOWHERE",
        "DOLLAR": "$BASE",
    }
    assert Image().env() == {}


def test_what_this_machine_can_and_cannot() -> None:
    image = Image("x", install_cmd="uv pip install").set_env_vars({"A": "1"}).pip_install("numpy").run_bash("true")
    assert image.copy("x").copy("x", "y/").sync_package("z").local_problem() is None
    assert "leave it out" in (Image(python_path="/usr/bin/python3").local_problem() or "")
    for dest in ("/data", "~/data"):
        assert "KT_STEPS_DIR" in (Image().copy("x", dest).local_problem() or "")
    assert Image().local_note() is None
    assert "python:3.12" in (images.python("3.12").local_note() or "")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image(""),
        lambda: Image(image_id="two words"),
        lambda: Image(python_path="python3"),
        lambda: Image(name=3),  # type: ignore[arg-type]
        lambda: Image().pip_install([]),
        lambda: Image().pip_install([3]),  # type: ignore[list-item]
        lambda: Image().pip_install({"numpy": 1}),  # type: ignore[arg-type]
        lambda: Image().run_bash(""),
        lambda: Image().run_bash(["ls"]),  # type: ignore[arg-type]
        lambda: Image().copy(""),
        lambda: Image().sync_package(None),  # type: ignore[arg-type]
        lambda: Image().set_env_vars({"A": None}),
        lambda: Image.from_dockerfile("/nowhere/Dockerfile"),
    ],
)
def test_nonsense_is_one_clear_error(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_reprs() -> None:
    image = Image("mine", "python:3.12").pip_install("a<b").set_env_vars({"HF_TOKEN": "hunter2"})
    assert repr(image) == "Image('mine': FROM python:3.12; RUN pip install a<b; ENV HF_TOKEN)"
    assert "a&lt;b" in image._repr_html_()
    assert repr(Image()) == "Image()"


DOCKERFILE = r"""
# a comment
FROM python:3.12-slim
ENV A=1 B="two words"
ENV C three words
ENV KT_PYTHON_PATH=/opt/bin/python
RUN apt-get update && \
    # a comment between
    apt-get install -y curl
COPY data.txt /srv/
"""


def test_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    image = Image.from_dockerfile(str(tmp_path / "Dockerfile"), name="docker")
    assert (image.name, image.image_id, image.python_path) == ("docker", "python:3.12-slim", "/opt/bin/python")
    assert image.env() == {"A": "1", "B": "two words", "C": "three words"}
    assert image.steps[-2] == Step("bash", "apt-get update && apt-get install -y curl")
    assert image.steps[-1] == Step("copy", str(tmp_path / "data.txt"), dest="/srv/")
    assert image.contents.startswith(
        "FROM python:3.12-slim\nENV KT_PYTHON_PATH=/opt/bin/python\nENV A=1 B='two words'\n"
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("WORKDIR /x", "line 2"),
        ('RUN ["ls"]', "can't become a step"),
        ("COPY --chown=1 a b", "can't become a step"),
        ("COPY a b c", "one source"),
        ("FROM other", "second FROM"),
        ("ENV", "can't become a step"),
        ('COPY "a b', "quotation"),
    ],
)
def test_dockerfiles_that_are_more_than_steps(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM python\n{line}\n")
    with pytest.raises(ConfigError, match=says):
        Image.from_dockerfile(str(tmp_path / "Dockerfile"))


def test_ready_made_images() -> None:
    assert images.Python311() == images.python("3.11")
    assert images.Python310().image_id == "python:3.10-slim"
    assert images.Python312().image_id == "python:3.12-slim"
    assert images.ray("2.9").image_id == "rayproject/ray:2.9"
    assert images.Ray() == images.ray()
    assert images.pytorch().image_id == "nvcr.io/nvidia/pytorch:23.12-py3"
    assert images.Debian() == images.debian() == Image("debian")
    assert images.Ubuntu() == images.ubuntu()
    for name in images.__all__:
        assert callable(getattr(images, name))

from __future__ import annotations

import pickle
from typing import Any

import pytest

import kubetorch_jupyter as kt
from kubetorch_jupyter.errors import ConfigError
from kubetorch_jupyter.volume import Volume


def test_defaults_and_equality() -> None:
    volume = Volume("data", size="1024Mi")
    assert (volume.size, volume.mount_path, volume.access_mode) == ("1Gi", "/ktfs/data", "ReadWriteOnce")
    assert volume == Volume("data", "1Gi", mount_path="/ktfs/data")
    assert pickle.loads(pickle.dumps(volume)) == volume
    assert {volume, Volume("data", "1Gi")} == {volume}
    assert Volume.from_name("data", mount_path="/d") == Volume("data", None, "/d")
    assert "/ktfs/data" in volume._repr_html_()


@pytest.mark.parametrize(
    "keywords",
    [
        {"name": "Not OK"},
        {"name": ""},
        {"name": "a", "size": "big"},
        {"name": "a", "mount_path": "relative"},
        {"name": "a", "mount_path": "/a:b"},
        {"name": "a", "storage_class": "A"},
        {"name": "a", "access_mode": "rw"},
        {"name": "a", "namespace": "A"},
    ],
)
def test_nonsense_is_one_clear_error(keywords: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Volume: "):
        Volume(**keywords)


@pytest.mark.parametrize("act", ["create", "exists", "delete"])
def test_this_machine_has_no_volumes(act: str) -> None:
    volume = kt.Volume.from_name("data", mount_path="/d")  # asks nobody here
    assert volume == kt.Volume("data", mount_path="/d")
    with pytest.raises(kt.UnsupportedError, match="KT_BACKEND"):
        getattr(volume, act)()


def test_the_public_one_is_a_description_too() -> None:
    volume = kt.Volume("data", size="1024Mi")
    assert isinstance(volume, Volume)
    assert repr(volume) == repr(Volume("data", size="1Gi"))
    assert pickle.loads(pickle.dumps(volume)) == volume
    assert kt.Compute(volumes=[volume]).volumes == (volume,)

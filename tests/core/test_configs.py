import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scene_distill.core.configs import changed_fields, from_plain, load_config, save_config, to_plain
from scene_distill.core.errors import UserError
from scene_distill.core.memory import format_bytes, parse_bytes
from scene_distill.methods import METHODS
from scene_distill.methods.mdt_dist.config import MDTConfig
from scene_distill.methods.mdt_dist.run import METHOD
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.text_to_3d.registry import TEXT_METHODS

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_file_fits_its_method(path):
    name = yaml.safe_load(path.read_text())["method"]
    kind = MDTConfig if name == METHOD else (METHODS | TEXT_METHODS)[name].config
    assert isinstance(load_config(kind, path), kind)


@given(st.integers(1, 99), st.floats(1e-9, 1e9), st.booleans(), st.sampled_from(["balanced", "grid"]))
def test_yaml_round_trip_changes_nothing(tmp_path_factory, blocks, rate, share, scheme):
    config = MomentumGSConfig(
        data=Path("a/b"), blocks=blocks, lr_offsets=(rate, rate / 2), share_decoder=share, partition=scheme
    )
    path = tmp_path_factory.mktemp("c") / "config.yaml"
    save_config(config, path, "momentum-gs")
    assert load_config(MomentumGSConfig, path) == config
    assert changed_fields(config, from_plain(MomentumGSConfig, to_plain(config))) == []


@pytest.mark.parametrize(
    "values",
    [{"blocks": "many"}, {"blocks": 2.5}, {"no_such": 1}, {"partition": "round"}, {"lr_offsets": 3}, {"momentum": "x"}],
)
def test_a_value_that_does_not_fit_is_named(values):
    with pytest.raises(UserError, match=next(iter(values))):
        from_plain(MomentumGSConfig, values)


def test_how_to_run_may_change_on_resume_what_is_trained_may_not():
    config = MomentumGSConfig()
    assert changed_fields(config, dataclasses.replace(config, threads=3, max_memory="8GB", resume=True)) == []
    assert changed_fields(config, dataclasses.replace(config, seed=1, momentum=0.5)) == ["seed", "momentum"]


@pytest.mark.parametrize(
    ("text", "value"), [("8GB", 8 * 10**9), ("512 MiB", 512 * 2**20), ("1e9", 10**9), ("1.5g", 1_500_000_000)]
)
def test_amounts_of_memory(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "much", "8XB", "-1GB", "GB"])
def test_amounts_that_are_none(text):
    with pytest.raises(UserError, match="memory"):
        parse_bytes(text)


def test_amounts_are_printed_short():
    assert [format_bytes(x) for x in (12, 3.4e6, 1.25e9)] == ["12 B", "3.4 MB", "1.25 GB"]

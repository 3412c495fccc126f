"""Names, shapes, types and byte sizes of the eight published files, on the meta device; nothing is downloaded.

`trellis_manifest.json` writes the published tables down in short: {a,b} and {0..23} stand for several names.
"""

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from scene_distill.core.errors import UserError
from scene_distill.nets.trellis_networks import build_network

MANIFEST = json.loads((Path(__file__).parent / "trellis_manifest.json").read_text())
TYPES = {torch.float32: "F32", torch.float16: "F16"}


def expanded(name: str) -> list[str]:
    """All names that a name with braces stands for."""
    parts = re.split(r"\{(.*?)\}", name)
    for i in range(1, len(parts), 2):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", parts[i])
        parts[i] = [str(n) for n in range(int(span[1]), int(span[2]) + 1)] if span else parts[i].split(",")
    return ["".join(p) for p in itertools.product(*([p] if isinstance(p, str) else p for p in parts))]


def file_size(tensors: dict[str, tuple[list[int], str]]) -> int:
    """Bytes of a .safetensors file: length, compact header padded to 8, data by falling size of type."""
    header, offset = {}, 0
    width = {"F32": 4, "F16": 2}
    for name, (shape, kind) in sorted(tensors.items(), key=lambda entry: (-width[entry[1][1]], entry[0])):
        end = offset + width[kind] * int(torch.Size(shape).numel())
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + offset


@pytest.mark.parametrize("stem", MANIFEST)
def test_the_network_has_the_published_tensors_and_no_others(stem):
    entry = MANIFEST[stem]
    published = {name: (shape, kind) for row, shape, kind in entry["tensors"] for name in expanded(row)}
    assert len(published) == entry["keys"]
    network = build_network(entry["description"], stem)
    found = {name: (list(value.shape), TYPES[value.dtype]) for name, value in network.state_dict().items()}
    assert found == published
    assert all(value.is_meta for value in network.state_dict().values())
    assert sum(parameter.numel() for parameter in network.parameters()) == entry["parameters"]
    assert file_size(found) == entry["bytes"]


def test_a_type_for_the_torso_leaves_norms_alone():
    network = build_network(MANIFEST["slat_flow_img_dit_L_64l8p2_fp16"]["description"], "here", dtype=torch.float32)
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}


def test_larger_text_models_have_their_own_keys():
    args = dict(
        resolution=16, in_channels=8, out_channels=8, model_channels=1280, cond_channels=768, num_blocks=28,
        num_heads=16, patch_size=1, qk_rms_norm=True, qk_rms_norm_cross=True, use_fp16=True,
    )  # fmt: skip
    state = build_network({"name": "SparseStructureFlowModel", "args": args}, "XL").state_dict()
    assert state["blocks.27.cross_attn.q_rms_norm.gamma"].shape == (16, 80)
    assert state["blocks.0.cross_attn.to_kv.weight"].shape == (2560, 768)
    args |= dict(share_mod=True, qk_rms_norm_cross=False)
    shared = build_network({"name": "SparseStructureFlowModel", "args": args}, "shared").state_dict()
    assert shared["adaLN_modulation.1.weight"].shape == (7680, 1280)
    assert not any("blocks" in name and "adaLN" in name for name in shared)
    args = {**args, "resolution": 64, "patch_size": 2, "io_block_channels": [256], "num_io_res_blocks": 3}
    latent = build_network({"name": "SLatFlowModel", "args": args}, "XL").state_dict()
    assert {name.split(".")[1] for name in latent if name.startswith("out_blocks")} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "SLatFluxModel"}, "SLatFluxModel.*known are"),
        ({"args": {"resolution": 16}}, "ss.json.*missing: cond_channels, in_channels"),
        ({"args": {"colour": 1}}, "unknown: colour"),
        ({"args": "more", "pe_mode": "learned"}, "learned"),
        ({"args": "more", "num_heads": 7}, "7 heads"),
    ],
)
def test_descriptions_that_cannot_be_built_say_why(change, words):
    description = MANIFEST["ss_flow_img_dit_L_16l8_fp16"]["description"]
    if change.get("args") == "more":
        more = {key: value for key, value in change.items() if key != "args"}
        change = {"args": {**description["args"], **more}}
    with pytest.raises(UserError, match=words):
        build_network({**description, **change}, "ss.json")

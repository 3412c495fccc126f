"""LPIPS against torchmetrics' module with the same random weights, saved by the test; nothing is downloaded."""

import pytest
import torch
from safetensors.torch import save_file

from scene_distill.core.errors import UserError
from scene_distill.training.lpips import load_lpips
from scene_distill.training.metrics import measure

torchmetrics_lpips = pytest.importorskip("torchmetrics.functional.image.lpips")


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run: torch's threads would spin against the native ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_module(net: str):
    """torchmetrics' LPIPS with random weights in the image network and random, non-negative channel weights."""
    torch.manual_seed(3)
    module = torchmetrics_lpips._LPIPS(pretrained=False, net=net, pnet_rand=True, eval_mode=True)
    with torch.no_grad():
        for layer in module.lins:
            layer.model[-1].weight.abs_()
        for name, parameter in module.net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
    return module


def pictures(height=64, width=80):
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(height, width, 3, generator=generator)
    return (photo + 0.2 * torch.randn(height, width, 3, generator=generator)).clamp(0, 1), photo


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    module = random_module("alex")
    folder = tmp_path_factory.mktemp("alex")
    torch.save(module.state_dict(), folder / "whole.pth")
    return "alex", module, folder


def test_it_is_torchmetrics_distance_and_names_its_network(saved):
    network, module, folder = saved
    render, photo = pictures()
    ours = load_lpips([folder / "whole.pth"])
    with torch.no_grad():
        theirs = module(*(image.permute(2, 0, 1)[None] for image in (render, photo)), normalize=True)
    assert ours(render, photo) == pytest.approx(float(theirs), rel=1e-4) and float(theirs) > 1e-4
    assert ours(photo, photo) == 0
    told = ours.provenance()
    assert told["network"] == network and told["input_range"] == [-1, 1]
    assert told["weights"][0]["file"] == "whole.pth" and told["weights"][0]["published"] is False


def test_image_network_and_channel_weights_may_be_two_files(saved):
    network, module, folder = saved
    state = module.state_dict()
    heads = {name: tensor for name, tensor in state.items() if name.startswith("lin") and not name.startswith("lins")}
    image = {
        "features." + name.split(".", 2)[2]: tensor for name, tensor in state.items() if name.startswith("net.slice")
    }
    torch.save(image, folder / "image.pth")
    save_file({name: tensor.contiguous() for name, tensor in heads.items()}, folder / "heads.safetensors")
    both = load_lpips([folder / "image.pth", folder / "heads.safetensors"])
    whole = load_lpips([folder / "whole.pth"])
    assert both.network == network and both(*pictures()) == whole(*pictures())
    with pytest.raises(UserError, match=rf"channel weights of LPIPS for {network} are missing.*{network}\.pth"):
        load_lpips([folder / "image.pth"])
    with pytest.raises(UserError, match="no AlexNet or VGG-16"):
        load_lpips([folder / "heads.safetensors"])


def test_it_stands_beside_the_other_metrics_raw_and_corrected(saved):
    _, _, folder = saved
    lpips = load_lpips([folder / "whole.pth"])
    found = measure(*pictures(), lpips)
    assert list(found)[-2:] == ["lpips", "lpips_corrected"]
    assert "lpips" not in measure(*pictures())
    with pytest.raises(UserError, match="at least 32 px"):
        lpips(*pictures(20, 80))


def test_what_is_no_weight_file_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the LPIPS weights .*nowhere\.pth"):
        load_lpips([tmp_path / "nowhere.pth"])
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(UserError, match="does not hold network weights"):
            load_lpips([tmp_path / name])
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="save a state_dict"):
        load_lpips([tmp_path / "list.pth"])


def test_code_in_a_weight_file_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"x": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="does not hold network weights"):
        load_lpips([tmp_path / "trap.pth"])
    assert not (tmp_path / "sprung").exists()


def test_vgg_is_told_by_its_shapes(tmp_path):
    module = random_module("vgg")
    torch.save(module.state_dict(), tmp_path / "vgg.pth")
    render, photo = pictures(32, 32)
    ours = load_lpips([tmp_path / "vgg.pth"])
    with torch.no_grad():
        theirs = module(*(image.permute(2, 0, 1)[None] for image in (render, photo)), normalize=True)
    assert ours.network == "vgg" and ours(render, photo) == pytest.approx(float(theirs), rel=1e-4)

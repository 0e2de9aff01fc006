"""guided-diffusion's classifier of noisy images: it guides, and is no backbone. What it computes: test_formats.py."""

import pytest
import torch
from layouts import classifier_weights

from invdiff import Guidance, Identity, NetworkBackbone, load_backbone, solve
from invdiff.checkpoints import NoisyClassifier, load_classifier
from invdiff.checkpoints.classifier import ClassifierConfig
from invdiff.errors import InvdiffError
from invdiff.samplers.guidance import GuidedBackbone


@pytest.fixture
def file(tmp_path):
    torch.save(classifier_weights(), tmp_path / "tiny_classifier.pt")
    return tmp_path / "tiny_classifier.pt"


def test_it_guides_a_sampler_as_the_paper_s_algorithm_2_says(file):
    classifier = load_classifier(file, 16, head_channels=16)
    backbone = NetworkBackbone(lambda x, t: 0.5 * x, image_shape=(3, 16, 16))
    guided = GuidedBackbone(backbone, [Guidance(classifier.loss(7), weight=2.0, on="x_t")])
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_p = classifier(x, torch.full((2,), 400)).log_softmax(-1)[:, 7]
    (score,) = torch.autograd.grad(log_p.sum(), x)
    a = backbone.schedule.alpha_bar_at(400)
    expected = backbone.predict(x, 400).eps - 2.0 * (1 - a) ** 0.5 * score
    torch.testing.assert_close(guided.predict(x.detach(), 400).eps, expected.detach(), atol=1e-5, rtol=1e-5)


def test_guided_samples_are_of_the_class_more_than_unguided_ones(file):
    classifier = load_classifier(file, 16, head_channels=16)
    backbone = NetworkBackbone(lambda x, t: 0.5 * x, image_shape=(3, 16, 16))
    y = torch.zeros(3, 16, 16)
    settings = {"backbone": backbone, "sigma_y": 5.0, "value_range": (-1, 1), "steps": 8, "n_samples": 2}
    results = [
        solve(Identity(), y, "ddnm+", guidance=guidance, **settings).x
        for guidance in (None, Guidance(classifier.loss(3), weight=50.0, on="x_t"))
    ]
    losses = [classifier.loss(3)(x, torch.zeros(len(x))).mean() for x in results]
    assert losses[1] < losses[0]


def test_it_is_named_where_a_backbone_is_wanted(file):
    with pytest.raises(InvdiffError, match=r"classifier of noisy images, no backbone.*load_classifier"):
        load_backbone(file)


def test_wrong_files_and_labels_are_refused(file, tmp_path):
    with pytest.raises(InvdiffError, match=r"image_size must be 8 times a power of two.*got 20"):
        load_classifier(file, 20)
    with pytest.raises(
        InvdiffError, match=r"image_size 64 does not go with the 6 blocks|Is it a classifier of 64 pixels"
    ):
        load_classifier(file, 64)
    with pytest.raises(InvdiffError, match=r"head_channels must divide the 64 channels.*got 48"):
        load_classifier(file, 16, head_channels=48)
    classifier = load_classifier(file, 16, head_channels=16)
    with pytest.raises(InvdiffError, match=r"label must be a whole number from 0 to 9, got 10"):
        classifier.loss(10)
    with pytest.raises(InvdiffError, match=r"takes images of \(3, 16, 16\), got \(3, 8, 8\)"):
        classifier(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(InvdiffError, match=r"no classifier of guided-diffusion.*none is input_blocks\.0\.0\.weight"):
        load_classifier(tmp_path / "other.pt")


def test_the_published_classifier_s_shape_is_read_off_its_file(tmp_path):
    # 256 pixels: width 128, depth 2, attention at 32, 16 and 8 pixels, 1,000 classes
    wanted = ClassifierConfig(
        image_size=256,
        model_channels=128,
        channels=(128, 128, 256, 256, 512, 512),
        num_res_blocks=2,
        attended=(False, False, False, True, True, True),
        head_channels=64,
        in_channels=3,
        classes=1000,
        scale_shift=True,
        resblock_down=True,
    )
    with torch.device("meta"):
        state = NoisyClassifier(wanted).state_dict()
    assert ClassifierConfig.infer(state, 256, 64, tmp_path) == wanted

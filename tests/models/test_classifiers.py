"""What every model owes the trainer, whatever its architecture."""

from __future__ import annotations

import pytest
import torch

from lowmem_seq.errors import UsageError
from lowmem_seq.models import ImageClassifier

from .builders import CLASSES, CLASSIFIERS, random_images, random_noise


@pytest.fixture(params=CLASSIFIERS, name="model")
def _model(request: pytest.FixtureRequest) -> ImageClassifier:
    return CLASSIFIERS[request.param]()


def test_gives_logits(model: ImageClassifier) -> None:
    assert model(random_images(6)).shape == (6, CLASSES)


def test_draws_no_random_numbers(model: ImageClassifier) -> None:
    before = torch.get_rng_state()
    model.train()(random_images(6), random_noise(model, 6)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_train_and_eval_are_the_same(model: ImageClassifier) -> None:
    images, noise = random_images(6), random_noise(model, 6)
    assert torch.equal(model.train()(images, noise), model.eval()(images, noise))


def test_a_batch_equals_its_parts(model: ImageClassifier) -> None:
    images, noise = random_images(6), random_noise(model, 6)
    whole = model(images, noise)
    for part in (slice(0, 3), slice(3, 6), slice(5, 6)):
        path = None if noise.keep_path is None else noise.keep_path[:, part]
        assert noise.keep_features is not None
        alone = model(images[part], type(noise)(path, noise.keep_features[part]))
        torch.testing.assert_close(alone, whole[part], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_parameter(model: ImageClassifier) -> None:
    images = random_images(6).requires_grad_()
    (model(images, random_noise(model, 6)) ** 2).sum().backward()
    dead = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert dead == []
    assert images.grad is not None
    assert bool(images.grad.flatten(1).any(dim=1).all())


def test_other_image_sizes_work(model: ImageClassifier) -> None:
    for height, width in ((8, 8), (32, 16), (8, 40)):
        assert model(random_images(2, height, width)).shape == (2, CLASSES)


def test_a_wrong_image_size_has_a_hint(model: ImageClassifier) -> None:
    with pytest.raises(UsageError, match="multiples of") as caught:
        model(random_images(2, 16, 18))
    assert "--image-size" in caught.value.hint


def test_weights_are_equal_for_equal_seeds() -> None:
    for build in CLASSIFIERS.values():
        first, second = build().state_dict(), build().state_dict()
        assert all(torch.equal(value, second[name]) for name, value in first.items())

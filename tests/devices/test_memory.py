import pytest
import torch

from fedbonsai.arch import Arch
from fedbonsai.devices.footprint import Job, measure, trained
from fedbonsai.devices.memory import around, peak_bytes, process_bytes, step_bytes
from fedbonsai.devices.profile import profile
from fedbonsai.work import Episode

HERE = "intel-xeon-processor"


def test_activations_of_a_step_by_hand():
    arch = Arch("mlp", {"channels": 1, "size": 8, "widths": [16], "classes": 10})
    # alive at once in a forward pass: at least the hidden layer before and after its activation
    play = step_bytes(Episode(arch, {}, (1, 8, 8), forward=32, batch=32))
    assert 4 * 32 * (16 + 16) <= play <= 4 * 32 * (64 + 16 + 64 + 16 + 10)
    weights = 4 * (64 * 16 + 16 + 16 * 10 + 10)
    learns = step_bytes(Episode(arch, {}, (1, 8, 8), backward=32, batch=32))
    assert learns >= weights + 4 * 32 * 16  # gradients and what they need
    assert learns <= 2 * weights + 4 * 32 * (64 + 6 * 16 + 4 * 10)


def test_memory_grows_with_the_batch_and_chords_lie_between():
    def play(batch):
        return step_bytes(Episode(Arch("cnn-bn"), {}, (1, 8, 8), backward=batch, batch=batch))

    assert around(33) == (32, 40)
    assert play(32) < play(33) < play(40)
    assert play(33) == play(32) + (play(40) - play(32)) // 8
    assert play(256) > 6 * play(32)


def test_what_is_held_and_the_copies_count():
    job = Job("mlp", (1, 8, 8), 8, 2, {"size": 8})
    (done,) = trained(job)
    samples = 2 * (16 * 64 * 4 + 16 * 8)
    momentum = sum(4 * torch.Size(shape).numel() for shape in done.shapes.values())
    assert done.held == samples + momentum
    assert peak_bytes([done]) >= step_bytes(done) + 2 * momentum + done.held
    assert peak_bytes([]) == 0
    pi = profile("raspberry-pi-4")
    assert process_bytes(pi, [done]) == round(pi.runtime.value + pi.library.value) + peak_bytes([done])


@pytest.mark.slow
@pytest.mark.parametrize("job", [Job("mlp", (1, 28, 28), options={"size": 28}), Job("resnet-tiny", (3, 32, 32))])
def test_predicted_and_real_peak_differ_by_less_than_15_percent(job):
    """Above what importing torch takes; ``bench/memory.py`` has the table of all networks."""
    real = measure(job)
    here = profile(HERE)
    predicted = process_bytes(here, trained(job)) - here.runtime.value
    assert predicted == pytest.approx(real.peak, rel=0.15)

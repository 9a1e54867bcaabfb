"""Work that threads share: the same results, in order, however many they are. (``make test`` uses one a process.)"""

import os
import signal
import threading
import time

import pytest
import torch

from bridge.sau import THREAD_SHARE
from bridge.storage import load_frontend
from snn.data import load_images
from snn.data_source import DataSource
from snn.learner import learn
from snn.learning import Learning
from snn.runtime.threads import fastest, for_each, numbers_of_threads, seconds_by_threads


@pytest.fixture
def use_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_items_are_shared_and_their_results_keep_their_order(use_threads):
    use_threads(3)
    # Broken unless three threads come together.
    together = threading.Barrier(3, timeout=60)

    def square(item: int) -> int:
        together.wait()
        return item**2

    assert for_each(square, range(3)) == [0, 1, 4]


def test_an_error_in_any_thread_is_raised(use_threads):
    use_threads(2)
    for wrong in range(3):
        with pytest.raises(ZeroDivisionError):
            for_each(lambda item, wrong=wrong: 1 / (item - wrong), range(3))


def test_learned_values_and_features_do_not_depend_on_the_number_of_threads(use_threads, pipeline):
    data = load_images(DataSource(limit_train=40, limit_test=300), "test", seed=0)
    frontend, *_ = load_frontend(pipeline.frontend)
    results = []
    for threads in (1, 3):
        use_threads(threads)
        with torch.no_grad():
            features = frontend(data.images / 255)
        assert features.numel() > 2 * THREAD_SHARE
        layers = learn(data.images[:40], Learning(maps=(3, 4), min_updates=4)).layers
        results.append([features, *(values for part in layers for values in (part.layer.conductance, part.layer.gain,
                                                                             part.history.wins))])  # fmt: skip
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


def test_the_fastest_number_of_threads_is_measured_and_ties_go_to_fewer(use_threads):
    use_threads(3)
    assert [numbers_of_threads(limit) for limit in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    # Two threads of a busy machine that wait for each other.
    duration = {1: 0.02, 2: 0.06, 4: 0.005}
    seconds = seconds_by_threads(lambda: time.sleep(duration[torch.get_num_threads()]), 4, budget=5.0)
    assert torch.get_num_threads() == 3
    assert sorted(seconds, key=seconds.get) == [4, 1, 2]
    assert all(seconds[number] >= duration[number] for number in duration)
    assert fastest(seconds) == 4
    assert fastest({1: 0.02, 2: 0.06}) == 1
    assert fastest({1: 1.0, 2: 1.0, 4: 0.99}) == 1
    assert fastest({1: 1.0, 2: 0.6, 4: 0.59}) == 2


def test_measuring_ends_when_its_time_is_used(use_threads):
    use_threads(1)
    calls = []

    def work():
        calls.append(torch.get_num_threads())
        time.sleep(0.02)

    seconds_by_threads(work, 2, budget=0.01)
    # One turn that is not measured, and one that is.
    assert calls == [1, 2, 1, 2]
    calls.clear()
    seconds_by_threads(work, 2, budget=60.0)
    assert calls == [1, 2] * 6


@pytest.mark.parametrize("work", ["learn", "torch", "items"])
def test_a_forked_process_computes_what_its_parent_does(work, use_threads):
    use_threads(2)
    values = torch.arange(4e6)

    def compute() -> float:
        if work == "learn":
            images = torch.randint(256, (8, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            return learn(images, Learning(maps=(3,), min_updates=2)).layers[0].layer.conductance.sum().item()
        if work == "torch":
            return values.sin().abs().max().item()
        return sum(for_each(float, range(7)))

    expected = compute()
    child = os.fork()
    if not child:
        # A child that waits for threads which do not run in it is ended.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            os._exit(compute() != expected)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    child = os.fork()
    if not child:
        signal.alarm(60)
        torch.set_num_threads(2)
        try:
            os._exit(sum(for_each(float, range(7))) != 21)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0

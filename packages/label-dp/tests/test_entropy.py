import copy
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from chapbook.core.errors import Error
from chapbook.label_dp import entropy as module
from chapbook.label_dp.entropy import Entropy


def test_a_seed_repeats_the_stream_and_the_default_does_not():
    assert np.array_equal(Entropy(seed=7).words(1000), Entropy(seed=7).words(1000))
    assert not np.array_equal(Entropy(seed=7).words(1000), Entropy(seed=8).words(1000))
    assert not np.array_equal(Entropy().words(4), Entropy().words(4))
    assert Entropy(seed=0).seeded
    assert not Entropy().seeded


def test_the_stream_is_chacha20_under_a_key_of_the_operating_system(monkeypatch):
    key = bytes(range(32))
    monkeypatch.setattr(os, "urandom", lambda count: key[:count])
    words = Entropy().words(20_000)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    assert words.tobytes() == stream.update(bytes(160_000))


def test_the_stream_does_not_depend_on_how_it_is_asked_for():
    pieces, whole = Entropy(seed=1), Entropy(seed=1).words(30_000)
    counts = [1, 2, 0, 9_000, 20_997]
    assert np.array_equal(np.concatenate([pieces.words(c) for c in counts]), whole)


def test_a_new_key_is_taken_before_the_counter_wraps(monkeypatch):
    monkeypatch.setattr(module, "_BYTES_PER_KEY", 1 << 10)
    words = Entropy(seed=3).words(1000)
    assert len(np.unique(words)) == 1000
    assert np.array_equal(words, Entropy(seed=3).words(1000))


def test_copies_and_pickles_never_draw_the_same_noise():
    source = Entropy()
    for other in (copy.copy(source), copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
        assert not np.array_equal(source.words(4), other.words(4))
    with pytest.raises(TypeError, match="make one from its seed"):
        copy.copy(Entropy(seed=1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_forked_process_never_draws_the_noise_of_its_parent():
    source = Entropy()
    source.words(1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source.words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 32) != source.words(4).tobytes()
    os.close(reader)
    os.close(writer)


def test_children_of_a_seed_are_repeatable_and_differ():
    draws = [Entropy(seed=5).child(i).words(4).tolist() for i in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
    assert Entropy(seed=5).child(0).seeded
    assert not Entropy().child(0).seeded


@pytest.mark.parametrize("bound", [1, 2, 3, 10, 1000, 3 << 60, 1 << 62])
def test_integers_below_a_bound_are_uniform(bound):
    draws = Entropy(seed=bound % 1000).below(np.full(20_000, bound))
    assert draws.min() >= 0
    assert draws.max() < bound
    cells = min(bound, 10)
    counts = np.bincount([int(draw) * cells // bound for draw in draws], minlength=cells)
    assert cells == 1 or stats.chisquare(counts).pvalue > 1e-4


def test_a_draw_at_or_above_the_limit_is_drawn_again(monkeypatch):
    source = Entropy(seed=1)
    words = iter([np.array([5, 9, 3], np.uint64) << 2, np.array([7], np.uint64) << 2])
    words = iter([*words, np.array([2], np.uint64) << np.uint64(2)])
    monkeypatch.setattr(source, "words", lambda count: next(words))
    assert source.under(np.array([6, 6, 6])).tolist() == [5, 2, 3]


def test_a_permutation_holds_every_index_once():
    assert sorted(Entropy(seed=2).permutation(500).tolist()) == list(range(500))


@pytest.mark.wrong_types
@pytest.mark.parametrize("seed", [True, 1.5, "7", 1 << 256])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(Error, match="the seed"):
        Entropy(seed=seed)

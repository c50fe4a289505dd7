"""Which sample comes when, and with which noise: the same however the run was cut."""

import pickle
import random
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_trainer.base.sampling import (
    ExactSampler,
    SeededDataset,
    derive_seed,
    seed_generators,
)

SEED = 7

# Sizes that fill the last global batch, that leave a part of it, and that leave less than one
# sample for each process.
SIZES = [4, 5, 8, 11, 12, 13, 24, 25, 26, 29]


def samplers(
    n_samples: int, batch_size: int, n_processes: int, shuffle: bool = True, position: int = 0
) -> list[ExactSampler]:
    """The samplers of all processes."""
    made = [
        ExactSampler(n_samples, batch_size, SEED, shuffle, n_processes, rank)
        for rank in range(n_processes)
    ]
    for sampler in made:
        sampler.position = position
    return made


def cut(keys: list[int], size: int) -> list[list[int]]:
    """The batches that a loader makes of them."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def rest_of_epoch(group: list[ExactSampler]) -> list[list[int]]:
    """The keys of each global batch, sorted."""
    by_process = [cut(list(sampler), sampler.batch_size) for sampler in group]
    return [sorted(chain(*batches)) for batches in zip(*by_process, strict=True)]


def finish_epoch(sampler: ExactSampler) -> None:
    """Advances to the end of the epoch."""
    for _ in range(-(-sampler.n_samples // sampler.global_batch_size)):
        sampler.advance()


# derive_seed --------------------------------------------------------------------------------------


def test_a_derived_seed_is_that_of_blake2b_over_the_parts():
    """As `b2sum -l 64` gives it; another would give a run that goes on other samples."""
    assert derive_seed(42, "order", 0) == 1608622093565479053


@pytest.mark.parametrize(
    ("parts", "others"),
    [
        ((1, "order", 0), (2, "order", 0)),
        ((1, "order", 0), (1, "sample", 0)),
        ((1, "order", 0), (1, "order", 1)),
        ((1, 2), (2, 1)),
        ((1,), ("1",)),
        (("ab",), ("a", "b")),
        ((12,), (1, 2)),
        ((1,), (1, 0)),
    ],
)
def test_other_parts_give_another_seed(parts, others):
    assert derive_seed(*parts) != derive_seed(*others)


def test_derived_seeds_have_63_bits_and_do_not_repeat():
    seeds = [derive_seed(SEED, "sample", key) for key in range(5000)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63


# seed_generators ----------------------------------------------------------------------------------


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_the_same_seed_gives_the_same_draws_from_all_three_generators(seed):
    seed_generators(seed)
    first = draw()
    draw()
    seed_generators(seed)
    assert draw() == first


def test_another_seed_gives_other_draws_from_all_three_generators():
    seed_generators(1)
    one = draw()
    seed_generators(2)
    assert all(a != b for a, b in zip(one, draw(), strict=True))


def test_torch_draws_as_after_its_own_manual_seed():
    seed_generators(123, torch.device("cpu"))
    drawn = torch.randn(5)
    torch.manual_seed(123)
    assert torch.equal(drawn, torch.randn(5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_generator_of_the_gpu_is_seeded_too_and_no_other_gpus():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    seed_generators(123, device)
    drawn = torch.randn(5, device=device)
    torch.randn(7, device=device)
    others = [torch.cuda.get_rng_state(i) for i in range(device.index)]
    seed_generators(123, device)
    assert torch.equal(drawn, torch.randn(5, device=device))
    now = [torch.cuda.get_rng_state(i) for i in range(device.index)]
    assert all(map(torch.equal, others, now))


# ExactSampler: training ---------------------------------------------------------------------------


@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("n_samples", SIZES)
def test_each_epoch_of_training_sees_each_sample_exactly_once(n_samples, n_processes):
    batch_size = 2
    group = samplers(n_samples, batch_size, n_processes)
    tail = n_samples % (batch_size * n_processes)
    n_shared = n_processes - tail if 0 < tail < n_processes else 0
    for epoch in range(3):
        keys = list(chain(*group))
        first_key = epoch * n_samples
        assert set(keys) == set(range(first_key, first_key + n_samples))
        # Only where the last samples are too few to go round are some of them seen twice.
        assert len(keys) == n_samples + n_shared
        for sampler in group:
            finish_epoch(sampler)


@pytest.mark.parametrize("n_processes", [2, 3, 4])
@pytest.mark.parametrize("n_samples", SIZES)
def test_a_global_batch_holds_the_same_samples_whatever_the_number_of_processes(
    n_samples, n_processes
):
    for position in (0, n_samples):
        alone = rest_of_epoch(samplers(n_samples, 12, 1, position=position))
        together = rest_of_epoch(
            samplers(n_samples, 12 // n_processes, n_processes, position=position)
        )
        assert [set(batch) for batch in together] == [set(batch) for batch in alone]
        assert together[:-1] == alone[:-1]


@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("n_samples", SIZES)
def test_a_restart_at_any_batch_gives_exactly_the_rest_of_two_epochs(n_samples, n_processes):
    batch_size = 2
    n_batches = -(-n_samples // (batch_size * n_processes))
    whole = [
        [
            cut(list(sampler), batch_size)
            for sampler in samplers(n_samples, batch_size, n_processes, position=position)
        ]
        for position in (0, n_samples)
    ]
    group = samplers(n_samples, batch_size, n_processes)
    for n_done in range(2 * n_batches):
        epoch, batch = divmod(n_done, n_batches)
        for rank, sampler in enumerate(group):
            restarted = ExactSampler(n_samples, batch_size, SEED, True, n_processes, rank)
            restarted.position = sampler.position
            assert cut(list(restarted), batch_size) == whole[epoch][rank][batch:]
            sampler.advance()
    assert {sampler.position for sampler in group} == {2 * n_samples}


def test_a_restart_with_another_batch_size_still_sees_each_sample_once():
    (before,) = samplers(26, 4, 1)
    seen = list(before)[:12]
    (after,) = samplers(26, 5, 1, position=12)
    rest = list(after)
    assert sorted(seen + rest) == list(range(26))
    assert seen + rest == list(samplers(26, 26, 1)[0])


@pytest.mark.parametrize("n_processes", [2, 3, 4])
def test_a_restart_with_another_number_of_processes_still_sees_each_sample_once(n_processes):
    (alone,) = samplers(28, 4, 1)
    seen = list(alone)[:4]
    rest = list(chain(*samplers(28, 2, n_processes, position=4)))
    assert sorted(seen + rest) == list(range(28))


@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("n_samples", SIZES)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 30])
def test_all_processes_take_part_in_each_training_step(n_samples, batch_size, n_processes):
    group = samplers(n_samples, batch_size, n_processes)
    n_batches = {-(-len(sampler) // batch_size) for sampler in group}
    assert n_batches == {-(-n_samples // (batch_size * n_processes))}
    for sampler in group:
        assert all(cut(list(sampler), batch_size))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("n_samples", SIZES)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 30])
def test_the_length_is_the_number_of_keys_of_an_epoch(n_samples, batch_size, n_processes, shuffle):
    for sampler in samplers(n_samples, batch_size, n_processes, shuffle):
        assert len(sampler) == len(list(sampler))


def test_the_length_stays_that_of_a_whole_epoch_in_the_midst_of_one():
    """Lightning counts the batches of an epoch by it, also when it goes on within one."""
    (sampler,) = samplers(26, 4, 1, position=12)
    assert len(sampler) == 26
    assert len(list(sampler)) == 14


def test_each_epoch_has_an_order_of_its_own():
    orders = [
        [key % 26 for key in samplers(26, 4, 1, position=epoch * 26)[0]] for epoch in range(4)
    ]
    assert all(sorted(order) == list(range(26)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert list(range(26)) not in orders


def test_each_seed_has_an_order_of_its_own():
    orders = {tuple(ExactSampler(26, 4, seed, shuffle=True)) for seed in range(4)}
    assert len(orders) == 4


def test_the_order_neither_reads_nor_moves_a_global_generator():
    seed_generators(1)
    first = list(samplers(26, 4, 1)[0])
    drawn = draw()
    seed_generators(1)
    assert drawn == draw()
    assert list(samplers(26, 4, 1)[0]) == first


def test_iterating_does_not_advance():
    """Workers fetch ahead: only what was used counts."""
    (sampler,) = samplers(26, 4, 1)
    assert list(sampler) == list(sampler)
    assert sampler.position == 0


def test_the_epoch_that_lightning_announces_changes_nothing():
    (sampler,) = samplers(26, 4, 1, position=8)
    before = list(sampler)
    sampler.set_epoch(5)
    assert list(sampler) == before
    assert sampler.position == 8


def test_an_epoch_begins_unless_it_is_reached():
    (sampler,) = samplers(26, 4, 1, position=34)
    sampler.begin_epoch(1)
    assert sampler.position == 34
    sampler.begin_epoch(2)
    assert sampler.position == 52


# ExactSampler: evaluation -------------------------------------------------------------------------


@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("n_samples", SIZES)
def test_an_evaluation_sees_each_sample_exactly_once_over_all_processes(n_samples, n_processes):
    keys = chain(*samplers(n_samples, 2, n_processes, shuffle=False))
    assert sorted(keys) == list(range(n_samples))


def test_an_evaluation_keeps_the_order_of_the_dataset():
    assert list(samplers(11, 4, 1, shuffle=False)[0]) == list(range(11))
    assert [list(sampler) for sampler in samplers(11, 2, 2, shuffle=False)] == [
        [0, 1, 4, 5, 8],
        [2, 3, 6, 7, 9, 10],
    ]


def test_two_evaluations_are_the_same():
    (sampler,) = samplers(11, 4, 1, shuffle=False)
    assert list(sampler) == list(sampler)


# ExactSampler: refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [True, False])
def test_fewer_samples_than_processes_are_refused(shuffle):
    with pytest.raises(ValueError) as error:
        ExactSampler(3, 1, SEED, shuffle, num_replicas=4, rank=0)
    assert str(error.value) == (
        "a dataset of 3 samples can't be shared by 4 processes: "
        "give it more samples or use fewer devices"
    )


def test_as_many_samples_as_processes_give_each_one():
    assert sorted(chain(*samplers(4, 8, 4))) == [0, 1, 2, 3]
    assert [len(sampler) for sampler in samplers(4, 8, 4)] == [1, 1, 1, 1]


# SeededDataset ------------------------------------------------------------------------------------


class Noise(torch.utils.data.Dataset):
    """5 samples: their index and a draw from each generator."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"i": index, "noise": draw()}


class NoiseByBatch(Noise):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_a_key_gives_the_same_sample_whatever_was_drawn_before():
    dataset = SeededDataset(Noise(), SEED)
    first = dataset[3]
    for seed in range(3):
        seed_generators(seed)
        assert dataset[3] == first
    dataset[1]
    assert dataset[3] == first
    assert SeededDataset(Noise(), SEED)[3] == first


def test_another_sample_epoch_or_seed_has_other_noise_from_each_generator():
    dataset = SeededDataset(Noise(), SEED)
    samples = [dataset[3], dataset[2], dataset[3 + 5], SeededDataset(Noise(), SEED + 1)[3]]
    assert [sample["i"] for sample in samples] == [3, 2, 3, 3]
    for draws in zip(*(sample["noise"] for sample in samples), strict=True):
        assert len(set(draws)) == len(samples)


def test_keys_of_all_epochs_are_decoded():
    dataset = SeededDataset(Noise(), SEED)
    assert len(dataset) == 5
    assert [dataset[key]["i"] for key in range(12)] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


DRAWS = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: float(np.random.rand()),
    "python": random.random,
    "numpy's normal": lambda: float(np.random.randn()),
    "a seed from torch": torch.initial_seed,
    "its own seed": lambda: np.random.seed(3),
}


class Drawing(Noise):
    """Draws what it is told to, from some sample on."""

    def __init__(self, names: tuple[str, ...], since: int) -> None:
        self.names, self.since, self.read = names, since, []

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.read.append(index)
        names = self.names if index >= self.since else ()
        return (index, [DRAWS[name]() for name in names])


@pytest.mark.parametrize("since", [0, 1, 9, 13])
@pytest.mark.parametrize(
    "names", [(), *[(name,) for name in DRAWS], ("python", "numpy"), (*DRAWS,)]
)
def test_read_by_batches_the_samples_are_those_that_are_read_alone(names, since):
    alone, dataset = (SeededDataset(Drawing(names, since), SEED) for _ in range(2))
    for start in range(0, 40, 8):
        keys = [*range(start, start + 8)]
        assert dataset.__getitems__(keys) == [alone[key] for key in keys]


def test_a_batch_is_read_again_only_where_it_is_the_first_to_draw():
    for names, since, n_more in (((), 0, 0), (("torch",), 0, 0), (("python",), 0, 1)):
        dataset = SeededDataset(Drawing(names, since), SEED)
        for start in range(0, 40, 8):
            dataset.__getitems__([*range(start, start + 8)])
        assert len(dataset.dataset.read) == 40 + n_more
    dataset = SeededDataset(Drawing(("python", "numpy"), 10), SEED)
    for start in range(0, 40, 8):
        dataset.__getitems__([*range(start, start + 8)])
    assert len(dataset.dataset.read) == 40 + 8


def test_what_makes_a_batch_of_samples_may_draw():
    """As for a mixture of samples, by numbers that belong to the batch."""

    class Mixing(Drawing):
        def collate_fn(self, samples):
            return [DRAWS[name]() for name in ("torch", "numpy", "python")]

    dataset = SeededDataset(Mixing((), 0), SEED)
    drawn = []
    for keys in ([1, 2], [3, 4], [1, 2]):
        dataset.__getitems__(keys)
        drawn.append(dataset.dataset.collate_fn([]))
        dataset[keys[-1]]  # alone, all generators are seeded
        assert drawn[-1] == dataset.dataset.collate_fn([])
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_whole_batch_gets_decoded_indices():
    asked = []

    class Recording(Noise):
        def __getitems__(self, indices):
            asked.append(indices)
            return [self[index] for index in indices]

    loader = DataLoader(SeededDataset(Recording(), SEED), 3, sampler=[7, 5, 9, 14])
    assert [batch["i"].tolist() for batch in loader] == [[2, 0, 4], [4]]
    assert asked == [[2, 0, 4], [4]]


def test_a_whole_batch_is_seeded_by_its_first_key():
    dataset = SeededDataset(NoiseByBatch(), SEED)
    first = dataset.__getitems__([3, 1])
    draw()
    assert dataset.__getitems__([3, 1]) == first
    assert dataset.__getitems__([8, 1])[0]["noise"] != first[0]["noise"]
    assert first[0] == dataset[3]
    for a, b in pairwise(sample["noise"] for sample in dataset.__getitems__([0, 1, 2, 3])):
        assert a != b


@pytest.mark.parametrize("kind", [Noise, NoiseByBatch])
def test_a_pickled_copy_gives_the_same_samples(kind):
    """As where workers are spawned, not forked."""
    dataset = SeededDataset(kind(), SEED)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[8] == dataset[8]
    assert hasattr(copy, "__getitems__") == hasattr(dataset, "__getitems__")
    if kind is NoiseByBatch:
        copy.seed = SEED + 1
        assert copy.__getitems__([8, 1]) != dataset.__getitems__([8, 1])


class Recorded(Noise):
    def get_batch(self, indices, seeds):
        return {"i": indices, "seed": seeds}


def test_made_as_a_whole_each_sample_has_a_seed_of_its_own():
    """A function of the run's seed, the epoch and the sample, whatever else is in the batch."""
    dataset = SeededDataset(Recorded(), SEED)
    batch = dataset.__getitems__([3, 1, 8, 3])
    assert batch["i"].tolist() == [3, 1, 3, 3]
    seeds = batch["seed"].tolist()
    assert seeds[0] == seeds[3]
    assert len({*seeds, dataset.__getitems__([6])["seed"].item()}) == 4
    assert dataset.__getitems__([8])["seed"].item() == seeds[2]
    assert SeededDataset(Recorded(), SEED + 1).__getitems__([3])["seed"].item() != seeds[0]

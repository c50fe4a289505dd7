"""The checks, in the order in which they run."""

from lightning_trainer.check.activation import find_wrong_activations
from lightning_trainer.check.broadcast import find_broadcast
from lightning_trainer.check.checking import Check
from lightning_trainer.check.features import find_target_in_features
from lightning_trainer.check.frozen import find_frozen_random
from lightning_trainer.check.future import find_future
from lightning_trainer.check.leak import find_leak
from lightning_trainer.check.learning import find_not_learning
from lightning_trainer.check.leftovers import find_leftovers
from lightning_trainer.check.loaded import find_not_loaded
from lightning_trainer.check.metric import find_wrong_metric
from lightning_trainer.check.mixing import find_mixing
from lightning_trainer.check.modes import find_wrong_modes
from lightning_trainer.check.optimiser import find_untrained
from lightning_trainer.check.rates import find_wrong_lengths
from lightning_trainer.check.relation import find_no_relation
from lightning_trainer.check.samples import find_unsteady_samples
from lightning_trainer.check.scale import find_wrong_scale
from lightning_trainer.check.score import find_wrong_direction
from lightning_trainer.check.unregistered import find_unregistered
from lightning_trainer.check.values import find_odd_values

CHECKS: dict[str, Check] = {
    "settings": find_leftovers,
    "score": find_wrong_direction,
    "schedule": find_wrong_lengths,
    "optimiser": find_untrained,
    "loaded": find_not_loaded,
    "modes": find_wrong_modes,
    "samples": find_unsteady_samples,
    "values": find_odd_values,
    "leak": find_leak,
    "scale": find_wrong_scale,
    "unregistered": find_unregistered,
    "activation": find_wrong_activations,
    "broadcast": find_broadcast,
    "mixing": find_mixing,
    "future": find_future,
    "metric": find_wrong_metric,
    "features": find_target_in_features,
    "frozen": find_frozen_random,
    "learning": find_not_learning,  # the last two train: they look at what is found before
    "relation": find_no_relation,
}

"""Mistakes of settings, optimiser, schedule and learning rate."""

from bases import KINDS, Pictures, Table, case
from torch import nn
from torch.optim import SGD, Adam, lr_scheduler


def scheduled(make, kind="pictures"):
    """`create_optimiser` with a scheduler that `make` returns."""

    def create_optimiser(self):
        KINDS[kind][0].create_optimiser(self)
        self.scheduler = make(self.optimiser)

    return create_optimiser


@case("pictures", "settings/validated_once", val_check_interval=2000)
class validated_after_the_end:
    pass


@case("pictures", "settings/limited", limit_train_batches=3)
class few_batches_of_debugging:
    pass


@case("pictures", "settings/limited", overfit_batches=2)
class one_batch_of_debugging:
    pass


@case("table", "score/mode")
class highest_error_is_best:
    def __init__(self, **kwargs):
        Table.__init__(self, score_mode="max", **kwargs)


@case("pictures", "score/plateau")
class plateau_of_an_accuracy:
    create_optimiser = scheduled(lr_scheduler.ReduceLROnPlateau)


@case("pictures", "schedule/rises_again")
class cosine_in_epochs:
    create_optimiser = scheduled(lambda o: lr_scheduler.CosineAnnealingLR(o, 20))


@case("words", "schedule/constant")
class cosine_of_a_longer_run:
    create_optimiser = scheduled(lambda o: lr_scheduler.CosineAnnealingLR(o, 100_000), "words")


@case("table", "schedule/decays_early")
class decay_in_epochs:
    create_optimiser = scheduled(lambda o: lr_scheduler.ExponentialLR(o, 0.95), "table")


@case("pictures", "schedule/decays_early")
class steps_in_epochs:
    create_optimiser = scheduled(lambda o: lr_scheduler.MultiStepLR(o, [30, 60, 90]))


@case("pictures", "schedule/ends_early")
class cycle_of_a_shorter_run:
    create_optimiser = scheduled(lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=200))


@case("words", "schedule/warm_up")
class warm_up_longer_than_the_run:
    create_optimiser = scheduled(
        lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 4000)), "words"
    )


@case("pictures", "optimiser/foreign")
class head_replaced_afterwards:
    def create_model(self):
        Pictures.create_model(self)
        self.collected = [*self.model.parameters()]
        self.model[-1] = nn.Linear(32, 10)

    def create_optimiser(self):
        self.optimiser = Adam(self.collected, 5e-3)


@case("pictures", "optimiser/not_optimised")
class groups_leave_the_head_out:
    def create_optimiser(self):
        named = self.model.named_parameters()
        self.optimiser = Adam([p for name, p in named if not name.startswith("5")], 5e-3)


@case("pictures", "optimiser/twice")
class groups_overlap:
    def create_optimiser(self):
        weights = [*self.model.parameters()]
        self.optimiser = SGD([*weights, weights[0]], 0.1)


@case("pictures", "learning/rate_high")
class rate_of_two:
    def create_optimiser(self):
        self.optimiser = Adam(self.model.parameters(), 2.0)


@case("table", "learning/rate_high")
class sgd_diverges:
    def create_optimiser(self):
        self.optimiser = SGD(self.model.parameters(), 5.0, momentum=0.9)


@case("pictures", "learning/rate_low")
class rate_of_a_ten_millionth:
    def create_optimiser(self):
        self.optimiser = Adam(self.model.parameters(), 1e-7)

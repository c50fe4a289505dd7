"""The fast recipe's network with a first layer that is computed from the images, not trained."""

from projects.cifar_fast import FastCifarModule
from projects.cifar_fast.whitened import whiten


class WhitenedModule(FastCifarModule):
    def create_model(self) -> None:
        super().create_model()
        images = self.trainer.datamodule.train_dataset.images[:5000].cpu()
        whiten(self.model[1][0], self.model[0](images))

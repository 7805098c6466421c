"""Recent pairs as further negatives for NegNCE (beyond the paper: do more hard negatives help a small batch?)."""

import torch

from dmae.modeling_dmae.losses_dmae import MemorySimilarities
from dmae.modeling_dmae.similarity_dmae import TextEmbeddings, VideoEmbeddings, similarity


class EmbeddingMemory:
    """The last `config.memory_size` pairs of the *gathered* batches, detached: the same on every rank.

    Saved with checkpoints (`state_dict`), so that a resumed run meets the negatives the interrupted one would have met.
    """

    def __init__(self, config):
        self.config = config
        self.kept: dict[str, torch.Tensor] = {}

    def similarities(self, text: TextEmbeddings, video: VideoEmbeddings, ids: dict) -> MemorySimilarities | None:
        """How the batch scores against what is remembered; None while nothing is."""
        if not self.kept:
            return None
        kept = {name: tensor.to(text.word_embeds.device) for name, tensor in self.kept.items()}
        old_text = TextEmbeddings(*(kept[f"text.{name}"] for name in TextEmbeddings._fields))
        old_video = VideoEmbeddings(*(kept[f"video.{name}"] for name in VideoEmbeddings._fields))
        same = [ids[name][:, None] == kept[name][None, :] for name in ids]
        return MemorySimilarities(
            videos=similarity(text, old_video, self.config),
            texts=similarity(old_text, video, self.config),
            matched=kept["matched"],
            duplicates=torch.stack(same).any(0) if self.config.mask_duplicates else None,
        )

    def add(self, text: TextEmbeddings, video: VideoEmbeddings, ids: dict, matched: torch.Tensor) -> None:
        """Remember a batch, forget the oldest."""
        new = {f"text.{name}": tensor for name, tensor in text._asdict().items()}
        new |= {f"video.{name}": tensor for name, tensor in video._asdict().items()} | ids | {"matched": matched}
        for name, tensor in new.items():
            tensor = tensor.detach()
            whole = torch.cat([self.kept[name].to(tensor.device), tensor]) if name in self.kept else tensor
            self.kept[name] = whole[-self.config.memory_size :]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.kept)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.kept = dict(state)

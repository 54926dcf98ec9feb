"""Passes of a causal model over texts of which the beginnings are known: only what is new is computed, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from prm_core.models.prefixes.attention import NAME, Packed
from prm_core.models.prefixes.switching import UnsupportedAttention, switched_on
from prm_core.models.prefixes.tree import Branch, Place, Tree

# Bytes that are kept unless somebody says otherwise.
LIMIT = 2**29
# Tokens of one pass, which bounds the memory of activations.
AT_ONCE = 4096


class PrefixPool:
    """What a model computed of texts that it has read. Belongs to one thread.

    Args:
        backbone: a causal model without its head, for which `packs` says yes.
        limit: bytes that are kept.
        forget: told of each branch that is dropped.

    Attributes:
        tree: what is kept.
    """

    def __init__(
        self, backbone: PreTrainedModel, limit: int = LIMIT, forget: Callable[[Branch], None] = lambda branch: None
    ) -> None:
        self.backbone = backbone
        self.tree = Tree(limit, forget)

    @property
    def start(self) -> Place:
        """Where every text begins."""
        return Place(self.tree.root, 0)

    @torch.inference_mode()
    def extend(self, places: Sequence[Place], texts: Sequence[Sequence[int]]) -> list[Place]:
        """One pass over tokens that follow places, at least one each, no two of which begin alike after the same place.
        Returns where each text ends now."""
        device = self.backbone.device
        ends = np.cumsum([len(text) for text in texts]).tolist()
        spans = list(zip([0, *ends], ends, strict=False))
        ids = torch.from_numpy(np.concatenate([np.asarray(text, dtype=np.int64) for text in texts]))
        positions = torch.from_numpy(np.concatenate(
            [np.arange(place.depth, place.depth + len(text)) for place, text in zip(places, texts, strict=True)]))
        packed = Packed(spans, places, device)
        with switched_on(self.backbone, NAME):
            # A four-dimensional mask passes the library as it is.
            hidden = self.backbone(
                input_ids=ids[None].to(device), position_ids=positions[None].to(device), use_cache=False,
                attention_mask=torch.zeros(1, 1, 1, 1, device=device), packed=packed).last_hidden_state[0]
        states = packed.states
        found = [self.tree.add(place, text, states[:, :, :, start:end], hidden[start:end])
                 for place, text, (start, end) in zip(places, texts, spans, strict=True)]
        for place in found:
            self.tree.use(place.branch)
        return found


    def read(self, texts: Sequence[Sequence[int]]) -> list[tuple[Place, int]]:
        """Where each text of at least one token ends, in order, and how many tokens were computed for it: those that no
        text before it, in this call or another, began with. They stay until something else is read."""
        costs = [0] * len(texts)
        places = [self.start] * len(texts)
        left = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        while left:
            now: dict[tuple[int, int, int], int] = {}
            room = AT_ONCE
            for index in left:
                place = places[index] = self.tree.find(places[index], texts[index][places[index].depth :])
                if place.depth < len(texts[index]) and room > 0:
                    # Of texts that begin alike one is read first.
                    start = (id(place.branch), place.count, int(texts[index][place.depth]))
                    if now.setdefault(start, index) == index:
                        room -= len(texts[index]) - place.depth
            for index in now.values():
                costs[index] += len(texts[index]) - places[index].depth
            if now:
                rows = list(now.values())
                ends = self.extend([places[row] for row in rows], [texts[row][places[row].depth :] for row in rows])
                for row, end in zip(rows, ends, strict=True):
                    places[row] = end
            left = [index for index in left if places[index].depth < len(texts[index])]
        for place in places:
            self.tree.use(place.branch)
        found = list(zip(places, costs, strict=True))
        self.tree.shrink(keep={run.branch for place in places for run in place.path()})
        return found


@torch.inference_mode()
def packs(backbone: PreTrainedModel) -> bool:
    """Whether the backbone reads packed texts after pasts: full causal attention in every layer.

    Asks the config, then the layers: two texts after one beginning must come out as they do alone. Sliding windows,
    soft caps, attention sinks, position biases, recurrent layers and encoder-decoder models say no.
    """
    config = backbone.config
    if (
        not getattr(backbone, "_supports_attention_backend", False)
        or getattr(config, "is_encoder_decoder", False)
        or getattr(config, "sliding_window", None)
        or any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ())
        # A model of several parts, each with its own config, would not be switched as a whole.
        or any(getattr(module, "config", config) is not config for module in backbone.modules())
    ):
        return False
    size = min(config.vocab_size, 1000)
    stem, left, right = (torch.randint(size, (n,), generator=torch.Generator().manual_seed(n)).tolist()
                         for n in (5, 3, 4))
    pool = PrefixPool(backbone)
    try:
        [place] = pool.extend([pool.start], [stem])
        found = [torch.cat(end.hidden(len(stem))) for end in pool.extend([place, place], [left, right])]
        alone = [backbone(input_ids=torch.tensor([stem + text], device=backbone.device),
                          use_cache=False).last_hidden_state[0, len(stem) :].float() for text in (left, right)]
    except (UnsupportedAttention, TypeError, ValueError, RuntimeError, KeyError):
        # The model takes no position_ids, hands no extra arguments to its layers, or its layers have no states to keep.
        return False
    # Reduced precision rounds either way.
    slack = 1e-3 if backbone.dtype == torch.float32 else 0.1
    scale = max(one.abs().max().item() for one in alone)
    return all((one.float() - other).abs().max().item() <= slack * scale
               for one, other in zip(found, alone, strict=True))

"""The names of a network's arrays without those of what wrapped it for training."""

import re
from collections.abc import Iterable

# Modules that hold a network, or one layer of it, and nothing else.
_HOLDERS = r"(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
_NETWORK = r"^(model|net|network)\."  # what Lightning's and others' modules call their network
_OWN_SCOPES = r"(conv1|bn1|layer\d+|fc|linear|features|classifier)\."  # of the networks here
_COUNTER = r"(\w+\.)*n_averaged"  # of `torch.optim.swa_utils.AveragedModel`
_MAX_NESTING = 8


def own_names(names: Iterable[str]) -> dict[str, str]:
    """Names as in the network's own state dict, by the given ones.

    Taken off, in any order and nesting: `module` (DataParallel, averaged weights) and `_orig_mod`
    (`torch.compile`) wherever they are; `model`, `net` and `network` in front; any other scope that
    holds all arrays, since no network here is a single module. The counter of averaged weights is
    left out.

    Args:
        names: of a state dict.

    Returns:
        The names as they are, where two of them would become one.
    """
    given = [name for name in names if not re.fullmatch(_COUNTER, name)]
    own = [re.sub(rf"\b{_HOLDERS}\.", "", name) for name in given]
    for _ in range(_MAX_NESTING):
        own = _without_common_scope([re.sub(_NETWORK, "", name) for name in own])
    return dict(zip(given, own if len(set(own)) == len(own) else given, strict=True))


def _without_common_scope(names: list[str]) -> list[str]:
    scopes = {re.split(r"(?<=\.)", name, maxsplit=1)[0] for name in names}
    is_wrapper = len(scopes) == 1 and re.fullmatch(rf"(?!{_OWN_SCOPES}).+\.", min(scopes))
    return [name.removeprefix(min(scopes)) for name in names] if is_wrapper else names

"""A question about nodes that several files ask: prompts, where they are read, and a metric."""

import torch
from families import VOCAB

N, LENGTH = 3, 9
G = torch.Generator().manual_seed(3)
CLEAN, CORRUPT = (torch.randint(1, VOCAB, (N, LENGTH), generator=G) for _ in range(2))
AT = torch.tensor([8, 5, 7])
ANSWER = torch.randint(0, VOCAB, (N, 2), generator=G)
ROWS = torch.arange(N)


def metric(logits):
    return logits.gather(1, ANSWER[:, :1])[:, 0] - logits.gather(1, ANSWER[:, 1:])[:, 0]

import gc

import numpy as np
import torch

from decoding.cuda.filters import DeviceFilters


def test_bitmaps_hold_the_bits_and_go_with_the_filter(device, make_trie):
    trie = make_trie(0, 300)
    filters = DeviceFilters(device)
    mask = np.random.default_rng(0).random(trie.n_leaves) < 0.3
    filter = trie.filter(mask)
    bitmaps = filters.bitmaps(filter)
    assert filters.bitmaps(filter) is bitmaps
    for words, bits in zip(bitmaps, filter.bits, strict=True):
        assert words.dtype == torch.int32
        unpacked = np.unpackbits(words.cpu().numpy().view(np.uint8), bitorder="little")
        assert np.array_equal(unpacked[: len(bits)].astype(np.bool_), bits)
        assert not unpacked[len(bits) :].any()
    del filter, bits, mask
    gc.collect()
    assert not len(filters)

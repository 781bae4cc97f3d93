"""`onesearch bench`: our parts beside their peers, interleaved in one run."""

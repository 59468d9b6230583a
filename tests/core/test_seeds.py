from moodpo.core.seeds import derive_seed


def test_seeds_differ_in_every_part_of_the_key_and_stay_in_range():
    keys = [(0, "train", 1, 2), (1, "train", 1, 2), (0, "eval", 1, 2), (0, "train", 12), (0, "y")]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "train", 1, 2) == seeds[0] == 6226108428555381139

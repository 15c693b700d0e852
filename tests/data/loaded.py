"""A data loader in another process, apart from the tests: what a process of joblib imports takes seconds."""

from ribseg.workers import use_own_start_method


def loaded_in_a_process():
    """What a data loader with a process of its own gives, in a job of a parallel launcher."""
    from torch.utils.data import DataLoader

    use_own_start_method()
    return [batch.tolist() for batch in DataLoader(range(4), batch_size=2, num_workers=1)]

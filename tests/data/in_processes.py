"""Work for other processes, apart from the tests: what such a process imports takes seconds."""

from ribseg.workers import use_own_start_method


def loaded_in_a_process():
    """What a data loader with a process of its own gives, in a job of a parallel launcher."""
    from torch.utils.data import DataLoader

    use_own_start_method()
    return [batch.tolist() for batch in DataLoader(range(4), batch_size=2, num_workers=1)]


def threads_of_torch(_):
    """The number of threads of torch, which is imported here."""
    import torch

    return torch.get_num_threads()

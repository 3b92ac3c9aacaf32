"""What a run promises when something goes wrong, and where the fault is really injected.

1. Nothing is lost: test_kill (any stage, the whole process tree), test_ranks (any rank in any
   loop, another number of ranks, ZeRO), test_checkpoints (kills while saving, 103 damages of each
   file, saved before evaluated), test_full_disk, test_folder.
2. Signals to any rank in any loop, agreed and saved in time: test_ranks, test_lone_work.
3. Bad images never pass silently: test_bad_files.
4. Bad numbers never train: test_ranks (pixels, loss, gradient; DDP and ZeRO).
5. Hostile input does nothing: test_hostile; DICOM identifiers: tests/test_whole_run_dicom.
6. Ranks never hang: test_ends (taken port, broken file, dead loader, uneven shares), test_ranks
   (dead, frozen and late ranks).
7. Same seed, same result: test_kill (loader threads, no cache), tests/test_whole_run_ranks (the
   same pixels and losses on other numbers of ranks).

The hook is `run(config, on_event=...)`: no private name is patched. `make faults` runs all of it:
this folder, tests/test_whole_run_dicom, tests/test_whole_run_ranks,
tests/test_whole_run_prepare (a run that prepares films, killed as it prepares) and
tests/data/prepare/test_faults (prepare stopped, full disk, lost source). Tests marked slow are left
out of `make test`.
"""

"""Many runs for one table: the paper's Table 1 and the rows that reviewers ask for.

A folder holds a plan of cells (system, known abnormal share, seed), each an ordinary run folder;
any number of workers on any number of machines carry it out, and one page compares the systems.
"""

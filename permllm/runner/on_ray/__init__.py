"""Does the runs of a study on a Ray cluster, each as one machine would do it.

A run is a task. What goes to its worker is plain data: the resolved pipeline as text, the run's
label and the study's folder, which all machines see. The worker reads the plan from that, and does
the run as :func:`permllm.runner.study.done` does it everywhere; its result is in the run's folder
before anybody hears of it. Workers share the study's cache, and so compute nothing twice.

Observers are the driver's. They hear of one run at a time, in the order of the plan, as from one
machine: what others have to tell waits meanwhile.
"""

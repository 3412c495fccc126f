"""Units, lanes, workers: partition, assignment, schedule, store and the runtime. No method knowledge."""

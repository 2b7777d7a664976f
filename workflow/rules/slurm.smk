# Where jobs go in a cluster: the section `slurm` of params.yaml as resources of every rule, so that it stands in
# one place. Local runs ignore them. What a rule, --set-resources or --default-resources says comes first.
# Included last, when all rules are known: a profile cannot read params.yaml, and a line in each rule could be
# forgotten in the next one.
for each in workflow.rules:
    for name, value in CONFIG.slurm.resources().items():
        if name not in each.resources:
            each.resources[name] = value

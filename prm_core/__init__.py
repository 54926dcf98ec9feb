"""Process supervision as a system: from problems and traces to a served process reward model and a policy.

At the root lie `types` (the nouns), `errors`, `registry` (how things plug in by name) and `config` (params.yaml and
profiles). The rooms, from the ground up:

    platform     store, tracking, workspaces       maths        answers and equations
    domains      kinds of problems, their oracle   problems     what data/ holds: made, or a user's own
    formats      labelled data of others           models       language models: loading, tokens, batches
    sampling     policies that write chains        scoring      reward models that score steps
    search       choosing among chains             labeling     verdicts on steps: merged, validated, calibrated
    training     warm-up, reward models, policies  review       people who judge steps
    evaluation   figures, benchmarks, the report   serving      HTTP, MLflow's registry, promotion
    stages       the stages of the chain           cli          the command `prm`
"""

"""The demo: the whole job on the embedded corpus, offline. ``mmbert demo`` runs `mmbert_hf.demo.pipeline.run_demo`.

Read in this order: `settings` and `tiers` (what is run), `pipeline` (the stages), `training`, `measuring`, `publishing`
(with `reloading`, which runs in processes of its own), `report` (with `verdicts`, `figures` and `plots`).
"""

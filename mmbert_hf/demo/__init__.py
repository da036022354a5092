"""The demo: an encoder from scratch and a pruned embedder, offline. ``mmbert demo`` runs `mmbert_hf.demo.pipeline.run_demo`.

Read in this order: `settings` and `tiers` (what is run), `pipeline` (the stages) and `state` (their record); the encoder
in `training`, `measuring`, `publishing` (with `reloading`, which runs in processes of its own); the embedder in `embedder`
and `pruning` (with `reloading_embedder`); `report` (with `verdicts`, `figures` and `plots`).
"""

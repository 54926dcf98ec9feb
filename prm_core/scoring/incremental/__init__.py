"""Scoring chains that go on from others, as agents and searches ask: `nodes` knows which beginnings have scores,
`reader` computes what is new. Nothing here knows of requests; queue and batches of a server are in
`serving/engine/`."""

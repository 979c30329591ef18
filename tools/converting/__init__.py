"""Checkpoints for another number of ranks, or quantised (commands/convert.py).

    source      the checkpoint that is converted: shards compared with one another, sizes found out
    plan        source + wish -> the tensors of every output file
    blocks      one tensor of the result: cut, joined, quantised block by block, never whole in memory
    torchfile   torch's file format written front to back, hashed on the way
    safetensors_file  the same for safetensors
    layouts     what the output folder holds: SAT's layout, Megatron's or Hugging Face's
    convert     the conversion itself: space, shards one after another, manifest, `latest`
    manifest    hashes and places of all files of a checkpoint, as JSON; the journal of what is finished; the lock
    verify      a checkpoint against its manifest, or by itself
    parts       the parts of a split archive before they are joined
"""

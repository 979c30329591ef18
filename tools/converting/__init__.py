"""The parts of tools/convert_tp.py and tools/verify_checkpoint.py.

    partition   which part of a tensor belongs to which tensor-parallel rank, as arithmetic on names and sizes
    source      the checkpoint that is converted: shards compared with one another, sizes found out
    blocks      one tensor of the result: cut, joined, quantised block by block, never whole in memory
    plan        source + wish -> the tensors of every output file
    torchfile   torch's file format written front to back, hashed on the way
    journal     what is finished, so that a killed conversion goes on; the lock; the check of free space
    convert     the conversion itself
    records     torch's file format read as bytes: where each tensor lies
    manifest    hashes and places of all files of a checkpoint, as a JSON file beside them
    verify      a checkpoint against its manifest, or by itself
    parts       the parts of a split archive before they are joined
"""

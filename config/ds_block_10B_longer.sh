# Reads documents from $TRAIN_DATA and the vocabulary from $TOKENIZER_PATH; goes on from $CHECKPOINT_PATH.
gpt_options=(--block-lm --task-mask --bert-prob 0.4 --gap-sentence-prob 0.3 --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.5 --single-span-prob 0.05
    --avg-block-length 3 --experiment-name blocklm-10B-longer
    --num-layers 48 --hidden-size 4096 --num-attention-heads 64 --max-position-embeddings 1024 --seq-length 1024
    --tokenizer-type GPT2BPETokenizer --tokenizer-path "$TOKENIZER_PATH" --train-data "$TRAIN_DATA"
    --split 949,50,1
    --load "$CHECKPOINT_PATH" --save "$SAVE_PATH" --save-interval 2000 --train-iters 50000 --batch-size 8
    --lr 3e-5 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-8
    --lr-decay-style linear --lr-decay-ratio 0.1 --lr-decay-iters 50000 --warmup 0.005
    --checkpoint-activations --fp16)

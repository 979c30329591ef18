# Reads documents from $TRAIN_DATA and the vocabulary from $TOKENIZER_PATH; goes on from $CHECKPOINT_PATH.
gpt_options=(--block-lm --task-mask --fix-command-token --bert-prob 0.4 --gap-sentence-prob 0.3 --gpt-min-ratio 0.25 --block-mask-prob 0.1 --short-seq-prob 0.02
    --avg-block-length 3 --experiment-name blocklm-large-chinese
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 1024 --seq-length 512
    --tokenizer-type ChineseSPTokenizer --tokenizer-path "$TOKENIZER_PATH" --train-data "$TRAIN_DATA"
    --split 949,50,1
    --load "$CHECKPOINT_PATH" --save "$SAVE_PATH" --save-interval 2000 --train-iters 250000 --batch-size 32
    --lr 4e-4 --weight-decay 0.01 --adam-beta1 0.9 --adam-beta2 0.98 --adam-eps 1e-6
    --lr-decay-style cosine --lr-decay-ratio 0.1 --lr-decay-iters 200000 --warmup 0.04
    --checkpoint-activations --fp16)

# Reads documents from $TRAIN_DATA and the vocabulary from $TOKENIZER_PATH; goes on from $CHECKPOINT_PATH.
gpt_options=(--block-lm --bert-prob 1.0
    --avg-block-length 3 --experiment-name blocklm-large
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 512 --seq-length 512
    --tokenizer-type BertWordPieceTokenizer --tokenizer-path "$TOKENIZER_PATH" --train-data "$TRAIN_DATA"
    --split 949,50,1
    --load "$CHECKPOINT_PATH" --save "$SAVE_PATH" --save-interval 2000 --train-iters 200000 --batch-size 16
    --lr 2e-4 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 --adam-eps 1e-6
    --lr-decay-style cosine --lr-decay-ratio 0.05 --lr-decay-iters 160000 --warmup 0.05
    --checkpoint-activations --fp16)

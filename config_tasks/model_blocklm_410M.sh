# GLM-410M. Its checkpoint is $CHECKPOINT_PATH/glm-410m; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-410M"
MODEL_ARGS=(--block-lm --num-layers 30 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 512
    --tokenizer-type BertWordPieceTokenizer
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-410m}" --load-pretrained "$CHECKPOINT_PATH/glm-410m")

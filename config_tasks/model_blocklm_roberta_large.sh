# GLM-RoBERTa (335M). Its checkpoint is $CHECKPOINT_PATH/glm-roberta-large; the vocabulary lies there or in $TOKENIZER_PATH.
MODEL_TYPE="blocklm-roberta_large"
MODEL_ARGS=(--block-lm --num-layers 24 --hidden-size 1024 --num-attention-heads 16 --max-position-embeddings 512
    --tokenizer-type GPT2BPETokenizer
    --tokenizer-path "${TOKENIZER_PATH:-$CHECKPOINT_PATH/glm-roberta-large}" --load-pretrained "$CHECKPOINT_PATH/glm-roberta-large")

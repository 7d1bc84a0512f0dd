"""Model Garden (`official`): encoders, heads and backbones, small. Everything in it is made with tf_keras."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import tensorflow as tf
import tf_keras
from official.nlp.modeling import layers, models, networks
from official.projects.movinet.modeling import movinet, movinet_model
from official.vision.modeling import backbones, classification_model

Build = Callable[[], tf_keras.layers.Layer]
WIDTH, HEADS, TOKENS = 8, 2, 6


def tokens() -> dict[str, tf.Tensor]:
    ids = tf.ones((2, TOKENS), tf.int32)
    return {"input_word_ids": ids, "input_mask": ids, "input_type_ids": ids * 0}


def called(network: tf_keras.layers.Layer, inputs: object) -> tf_keras.layers.Layer:
    """The network with all its variables."""
    network(inputs)
    return network


def encoder(make: Callable[..., tf_keras.layers.Layer], **options: object) -> tf_keras.layers.Layer:
    sizes = {"vocab_size": 17, "num_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS}
    return called(make(**{**sizes, **options}), tokens())


def bert() -> tf_keras.Model:
    return encoder(networks.BertEncoder, dict_outputs=True)


def bert_v2() -> tf_keras.layers.Layer:
    return encoder(networks.BertEncoderV2)


def mobile_bert() -> tf_keras.Model:
    network = networks.MobileBERTEncoder(
        word_vocab_size=17,
        word_embed_size=4,
        hidden_size=WIDTH,
        num_blocks=2,
        num_attention_heads=HEADS,
        intra_bottleneck_size=4,
        intermediate_size=16,
    )
    return called(network, list(tokens().values()))


def xlnet() -> tf_keras.layers.Layer:
    network = networks.XLNetBase(
        vocab_size=17,
        num_layers=2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        head_size=4,
        inner_size=16,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        attention_type="bi",
        bi_data=False,
        initializer=tf_keras.initializers.RandomNormal(),
    )
    return called(network, tf.ones((2, TOKENS), tf.int32))


def classifier() -> tf_keras.Model:
    return called(models.BertClassifier(bert(), num_classes=3), tokens())


def classifier_with_head() -> tf_keras.Model:
    head = layers.ClassificationHead(inner_dim=0, num_classes=3, name="sentence_prediction")
    return called(models.BertClassifier(bert_v2(), num_classes=3, cls_head=head), tokens())


def token_classifier() -> tf_keras.Model:
    return called(models.BertTokenClassifier(bert(), num_classes=3), tokens())


def span_labeler() -> tf_keras.Model:
    return called(models.BertSpanLabeler(bert()), tokens())


def masked() -> dict[str, tf.Tensor]:
    return {**tokens(), "masked_lm_positions": tf.ones((2, 2), tf.int32)}


def pretrainer() -> tf_keras.Model:
    head = layers.ClassificationHead(inner_dim=WIDTH, num_classes=2, name="next_sentence")
    return called(models.BertPretrainerV2(bert_v2(), classification_heads=[head]), masked())


def electra() -> tf_keras.Model:
    network = models.ElectraPretrainer(bert(), bert(), vocab_size=17, num_classes=2, num_token_predictions=2)
    return called(
        network,
        {**masked(), "masked_lm_ids": tf.ones((2, 2), tf.int32), "masked_lm_weights": tf.ones((2, 2), tf.int32)},
    )


def dual_encoder() -> tf_keras.Model:
    return models.DualEncoder(bert(), max_seq_length=TOKENS)


def seq2seq() -> tf_keras.Model:
    sizes = {"num_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 16}
    network = models.Seq2SeqTransformer(
        vocab_size=17,
        embedding_width=WIDTH,
        encoder_layer=models.TransformerEncoder(**sizes),
        decoder_layer=models.TransformerDecoder(**sizes),
        padded_decode=False,
        decode_max_length=TOKENS,
    )
    ids = tf.ones((2, TOKENS), tf.int32)
    return called(network, {"inputs": ids, "targets": ids})


def image(make: Callable[..., tf_keras.Model], *, size: int = 32, **options: object) -> tf_keras.Model:
    return make(input_specs=tf_keras.layers.InputSpec(shape=[None, size, size, 3]), **options)


def resnet() -> tf_keras.Model:
    return image(backbones.ResNet, model_id=18, depth_multiplier=0.25)


def image_classifier(backbone: Build) -> tf_keras.Model:
    specs = tf_keras.layers.InputSpec(shape=[None, 32, 32, 3])
    return called(
        classification_model.ClassificationModel(backbone(), num_classes=3, input_specs=specs), tf.zeros((1, 32, 32, 3))
    )


def movinet_backbone(**options: object) -> tf_keras.Model:
    return movinet.Movinet(model_id="a0", **options)


def movinet_classifier() -> tf_keras.Model:
    backbone = movinet_backbone(causal=True, use_external_states=False)
    return called(movinet_model.MovinetClassifier(backbone, num_classes=3), {"image": tf.zeros((1, 4, 32, 32, 3))})


vit = functools.partial(
    image,
    backbones.VisionTransformer,
    patch_size=16,
    hidden_size=WIDTH,
    mlp_dim=8,
    num_layers=2,
    num_heads=HEADS,
    representation_size=4,
)
SMALL: Mapping[str, Build] = {
    "BertEncoder": bert,
    "BertEncoderV2": bert_v2,
    "AlbertEncoder": functools.partial(encoder, networks.AlbertEncoder, embedding_width=4, dict_outputs=True),
    "MobileBERTEncoder": mobile_bert,
    "FunnelTransformerEncoder": functools.partial(
        encoder, networks.FunnelTransformerEncoder, max_sequence_length=TOKENS, unpool_length=0
    ),
    "FNet": functools.partial(encoder, networks.FNet, max_sequence_length=TOKENS, attention_layers=(1,)),
    "SparseMixer": functools.partial(
        encoder, networks.SparseMixer, max_sequence_length=TOKENS, moe_layers=(1,), num_experts=2, attention_layers=(1,)
    ),
    "XLNetBase": xlnet,
    "BertClassifier": classifier,
    "BertClassifier_with_head": classifier_with_head,
    "BertTokenClassifier": token_classifier,
    "BertSpanLabeler": span_labeler,
    "BertPretrainerV2": pretrainer,
    "ElectraPretrainer": electra,
    "DualEncoder": dual_encoder,
    "Seq2SeqTransformer": seq2seq,
    "VisionTransformer": vit,
    "ResNet18": resnet,
}
LARGE: Mapping[str, Build] = {
    "ResNet18_classifier": functools.partial(image_classifier, resnet),
    "VisionTransformer_classifier": functools.partial(image_classifier, vit),
    "MobileNetV2": functools.partial(image, backbones.MobileNet, model_id="MobileNetV2", filter_size_scale=0.35),
    "MobileNetV3Small": functools.partial(
        image, backbones.MobileNet, model_id="MobileNetV3Small", filter_size_scale=0.5
    ),
    "EfficientNetB0": functools.partial(image, backbones.EfficientNet, model_id="b0"),
    "Movinet": movinet_backbone,
    "RevNet56": functools.partial(image, backbones.RevNet, model_id=56),
    "SpineNet": functools.partial(image, backbones.SpineNet, size=128, endpoints_num_filters=8, filter_size_scale=0.1),
}
# Takes half a minute to build.
HUGE: Mapping[str, Build] = {"MovinetClassifier": movinet_classifier}

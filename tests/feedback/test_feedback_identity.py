"""A response that tells which model wrote it is found in ten languages; one that only speaks of models is not."""

from __future__ import annotations

import pytest

from tutelage.feedback.identity import telling

TELLS = [
    "As an AI language model, I cannot have opinions.",
    "I'm sorry, but as an AI I do not know.",
    "I am ChatGPT, here to help.",
    "I’m Claude, made by Anthropic.",
    "My name is Gemini and I can help.",
    "You are talking to Llama 3.",
    "I was developed and trained by OpenAI.",
    "I am a large language model trained by Google.",
    "I'm just an AI assistant, so take care.",
    "Als KI-Modell, das keine Gefühle hat ... Als Sprachmodell, weiß ich das nicht.",
    "Als KI kann ich das nicht beurteilen.",
    "Ich bin ein großes Sprachmodell.",
    "Ich wurde von OpenAI entwickelt.",
    "Mein Name ist Claude.",
    "En tant qu'IA, je ne peux pas.",
    "Je suis un modèle de langage.",
    "J’ai été développé par Mistral AI.",
    "Como modelo de lenguaje, no tengo opiniones.",
    "Soy ChatGPT y puedo ayudarte.",
    "Fui creado por Anthropic.",
    "Come intelligenza artificiale, non posso.",
    "Sono un modello linguistico.",
    "Como uma IA, não posso responder.",
    "Fui treinado pela OpenAI.",
    "作为一个人工智能，我没有感情。",
    "我是通义千问，可以帮助您。",
    "我是由阿里云开发的语言模型。",
    "AIとして、お答えできません。",
    "私は大規模言語モデルです。",
    "Как языковая модель, я не могу.",
    "Меня зовут ГигаЧат, то есть GigaChat. Меня зовут GigaChat.",
]

SILENT = [
    "She is a model citizen, and as a model citizen she pays.",
    "The llama is an animal of the Andes; an alpaca is smaller.",
    "I am Claude Monet's neighbour, said the old man.",
    "Claude Monet painted the mistral bending the trees.",
    "Shakespeare, the Bard, was born under Gemini? No, under Taurus.",
    "Android was developed by Google, and Windows by Microsoft.",
    "As an AI researcher, I read a lot.",
    "I am an AI engineer in Vienna.",
    "ChatGPT is a chatbot that was published in 2022.",
    "A language model predicts the next word.",
    "As a train driver, I start early.",
    "Als KI-Forscherin arbeite ich in Wien.",
    "Tecnologías como inteligencia artificial y radio cambian el mundo.",
    "Tecnologie come intelligenza artificiale e robotica.",
    "Je suis une infirmière.",
    "我是人工智能专业的学生。",
    "Как искусственный интеллект меняет мир?",
    "I am Gemini Smith of Mill Street.",
    "The speaker spoke of an echo.",
    "It was made by meta-analysis.",
    "",
]


@pytest.mark.parametrize("text", TELLS)
def test_who_tells_what_they_are_is_found(text):
    assert telling().search(text)


@pytest.mark.parametrize("text", SILENT)
def test_who_only_speaks_of_models_is_kept(text):
    assert not telling(["speaker", "fake:echo"]).search(text)


def test_the_producers_own_names_count_anywhere_when_they_are_nobody_elses():
    found = telling(["http://127.0.0.1:8000/v1#town-7b-instruct", "model:3fa9c0de77aa", "speaker", "org/velic2"])
    assert found.search("Answered by town-7b-instruct.") and found.search("velic2 says yes")
    assert found.search("See model:3fa9c0de77aa") and found.search("I am Speaker, your helper")
    assert not found.search("a town-7b-instructor") and not found.search("the town has a speaker")


def test_a_long_text_is_searched_in_one_pass():
    text = ("I am not here, as an aid, I was built by the river. " * 400)[:20_000]
    assert not telling(["model:" + "ab" * 32]).search(text)

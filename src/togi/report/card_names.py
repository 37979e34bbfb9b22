"""What togi itself calls metrics, curves and facts of a model, in the languages of a card. Names that users gave, and
names without a translation here, stay as they are."""

import re
from collections.abc import Mapping

METRICS = {
    "ended properly": ("正しく終了した応答", "правильно завершённые ответы"),
    "reward": ("報酬", "вознаграждение"),
    "held-out reward": ("独立した報酬モデルの報酬", "вознаграждение независимой модели"),
    "held-out reward: length read": (
        "独立した報酬モデルが読んだ長さ",
        "длина текста, прочитанного независимой моделью",
    ),
    "length (tokens)": ("長さ（トークン数）", "длина (токены)"),
    "length (characters)": ("長さ（文字数）", "длина (символы)"),
    "embedding dispersion": ("埋め込みの散らばり", "разброс эмбеддингов"),
    "accuracy on held-out pairs": ("検証用ペアでの正解率", "точность на отложенных парах"),
    "accuracy of the control": ("対照モデルの正解率", "точность контрольной модели"),
}
LABELS = {
    "architecture": ("アーキテクチャ", "архитектура"),
    "parameters": ("パラメーター数", "число параметров"),
    "layers": ("層数", "слои"),
    "hidden size": ("隠れ層の次元", "размер скрытого слоя"),
    "attention heads": ("アテンションヘッド数", "головы внимания"),
    "key and value heads": ("キー・バリューのヘッド数", "головы ключей и значений"),
    "head size": ("ヘッドの次元", "размер головы"),
    "feed-forward size": ("フィードフォワード層の次元", "размер слоя прямого распространения"),
    "experts": ("エキスパート数", "эксперты"),
    "active experts": ("同時に使うエキスパート数", "активные эксперты"),
    "context": ("コンテキスト長", "длина контекста"),
    "tokenizer": ("トークナイザー", "токенизатор"),
    "vocabulary": ("語彙数", "размер словаря"),
    "special tokens": ("特殊トークン", "специальные токены"),
    "chat template": ("チャットテンプレート", "шаблон чата"),
    "end of an answer": ("応答の終端", "конец ответа"),
    "its token ids": ("終端のトークン ID", "id токенов конца ответа"),
    "hardware": ("ハードウェア", "оборудование"),
    "device": ("デバイス", "устройство"),
    "processes": ("プロセス数", "процессы"),
    "compute_dtype": ("計算時のデータ型", "тип данных при вычислениях"),
}
CURVES = {
    "Reward": ("報酬", "Вознаграждение"),
    "Gate pass rate": ("ゲートの通過率", "Доля прошедших проверки"),
    "Accuracy on training pairs": ("学習用ペアでの正解率", "Точность на обучающих парах"),
    "Accuracy on held-out pairs": ("検証用ペアでの正解率", "Точность на отложенных парах"),
    "Reward margin": ("報酬の差", "Разница вознаграждений"),
    "Rewards of both answers": ("両応答の報酬", "Вознаграждения обоих ответов"),
    "Chosen answers: change since the start (nats per token)": (
        "選ばれた応答：開始時からの変化（トークンあたり nat）",
        "Предпочтённые ответы: изменение с начала обучения (нат на токен)",
    ),
    "Scores of both answers": ("両応答のスコア", "Оценки обоих ответов"),
    "Log-probability of both answers (nats per token)": (
        "両応答の対数確率（トークンあたり nat）",
        "Логарифм вероятности обоих ответов (нат на токен)",
    ),
    "Log-probability of both answers": ("両応答の対数確率", "Логарифм вероятности обоих ответов"),
    "Target margin (nats per token)": ("目標の差（トークンあたり nat）", "Целевая разница (нат на токен)"),
    "Length (tokens)": ("長さ（トークン数）", "Длина (токены)"),
    "KL from the initial model (nats per token)": (
        "初期モデルからの KL（トークンあたり nat）",
        "KL относительно исходной модели (нат на токен)",
    ),
    "Entropy (nats)": ("エントロピー（nat）", "Энтропия (нат)"),
    "Groups without reward spread": ("報酬に差のないグループ", "Группы без разброса вознаграждений"),
    "Groups with a training signal": ("学習信号のあるグループ", "Группы с обучающим сигналом"),
    "Groups replaced, and replacement rounds": (
        "入れ替えたグループと入れ替え回数",
        "Заменённые группы и число раундов замены",
    ),
    "Answers without a terminator": ("終端のない応答", "Ответы без завершающей строки"),
    "Mismatch with the sampler (nats per token)": (
        "サンプラーとのずれ（トークンあたり nat）",
        "Расхождение с генератором (нат на токен)",
    ),
    "Loss": ("損失", "Функция потерь"),
    "Gradient norm": ("勾配ノルム", "Норма градиента"),
    "Learning rate": ("学習率", "Скорость обучения"),
    "Tokens seen, by source": ("学習したトークン数（出典別）", "Пройденные токены по источникам"),
    "Epochs seen, by source": ("学習したエポック数（出典別）", "Пройденные эпохи по источникам"),
    "Tokens per second": ("毎秒のトークン数", "Токенов в секунду"),
    "Largest micro-batch (tokens)": ("最大のマイクロバッチ（トークン数）", "Наибольший микропакет (токены)"),
    "Peak memory (GB)": ("最大メモリー使用量（GB）", "Пиковый расход памяти (ГБ)"),
    "Time by phase": ("処理別の所要時間", "Время по фазам"),
    "rewards of both answers": ("両応答の報酬", "вознаграждения обоих ответов"),
    "log-probability of both answers": ("両応答の対数確率", "логарифм вероятности обоих ответов"),
    "scores of both answers": ("両応答のスコア", "оценки обоих ответов"),
}
"""Titles of `togi.report.curves`."""
BEGINNINGS = {
    "accuracy at learning rate ": ("検証用ペアでの正解率、学習率 ", "точность на отложенных парах, скорость обучения "),
    "Reward: ": ("報酬：", "Вознаграждение: "),
    "Validation: ": ("検証：", "Проверка: "),
}
"""The fixed beginnings of names that end with something of the recipe."""
NOTES = (
    (
        "share of answers that pass the terminator gate",
        "終端の判定を通過した応答の割合",
        "доля ответов, прошедших проверку завершающей строки",
    ),
    ("text without terminator", "終端を除いたテキスト", "текст без завершающей строки"),
    (
        ", both answers cut to the shorter one's length",
        "、両応答を短い方の長さに切り詰め",
        ", оба ответа обрезаны до длины более короткого",
    ),
    (", answers cut to the same length", "、応答は同じ長さに切り詰め", ", ответы обрезаны до одной длины"),
    (
        "characters of each answer that it reads",
        "応答ごとに読んだ文字数",
        "число прочитанных ею символов каждого ответа",
    ),
    (r"different (\d)-grams of words", r"異なる単語 \1-gram の割合", r"доля различных \1-грамм слов"),
    (r"different (\d)-grams of characters", r"異なる文字 \1-gram の割合", r"доля различных \1-грамм символов"),
    (
        r"each of (\d+) answers against the others",
        r"\1 件の応答をそれぞれ他の応答と比較",
        r"каждый ответ (всего \1) в сравнении с остальными",
    ),
    ("mean cosine distance", "コサイン距離の平均", "среднее косинусное расстояние"),
    (
        r", (\d+) prompts with an empty answer left out",
        r"、空の応答があるプロンプト \1 件を除く",
        r", без промптов с пустым ответом (\1)",
    ),
    (r"of (\d+) pairs", r"\1 ペア", r"пар: \1"),
    (
        r"mean length ([\d.]+) tokens chosen, ([\d.]+) rejected, prompt included",
        r"平均の長さ（プロンプトを含む）は、選ばれた側が \1 トークン、選ばれなかった側が \2 トークン",
        r"средняя длина в токенах вместе с промптом: предпочтённые \1, отвергнутые \2",
    ),
    (r"(\d+) ties count as wrong", r"同点 \1 件は不正解として数える", r"равные оценки (\1) считаются ошибками"),
    ("kept;", "採用;", "выбрана;"),
    (
        "trained on shuffled labels: should be near one half",
        "ラベルを無作為に入れ替えて学習したもので、0.5 に近いはず",
        "обучена на перемешанных метках: должна быть близка к 0.5",
    ),
)
"""Patterns of the notes on metrics, and what stands for a match."""
PLACES = {"ja": 0, "ru": 1}


def metric(name: str, language: str) -> str:
    """The name of a metric."""
    return _named(METRICS, name, language)


def label(name: str, language: str) -> str:
    """The name of a fact about the model or its machine."""
    return _named(LABELS, name, language)


def curve(title: str, language: str) -> str:
    """The title of a curve."""
    return _named(CURVES, title, language)


def note(text: str, language: str) -> str:
    """The note on a metric."""
    if language in PLACES:
        for pattern, *said in NOTES:
            text = re.sub(pattern, said[PLACES[language]], text)
    return text.replace("; ", "；").replace(";", "；") if language == "ja" else text


def _named(names: Mapping[str, tuple[str, str]], name: str, language: str) -> str:
    if language not in PLACES:
        return name
    if name in names:
        return names[name][PLACES[language]]
    for beginning, said in BEGINNINGS.items():
        if name.startswith(beginning):
            return said[PLACES[language]] + _named(names, name.removeprefix(beginning), language)
    return name

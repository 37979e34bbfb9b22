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
FIGURES = {
    "accuracy": ("正解率", "точность"),
    "accuracy, ties dropped": ("正解率（同点を除く）", "точность без равных оценок"),
    "accuracy, macro": ("正解率（カテゴリーの平均）", "точность, среднее по категориям"),
    "accuracy, mean of sets": ("正解率（データセットの平均）", "точность, среднее по наборам"),
    "ties": ("同点", "равные оценки"),
    "length bias": ("長い応答への偏り", "предпочтение длинных ответов"),
    "the shorter answer": ("短い方の応答", "более короткий ответ"),
    "the longer answer": ("長い方の応答", "более длинный ответ"),
    "calibration error": ("較正誤差", "ошибка калибровки"),
    "only it is right": ("このモデルだけが正解", "права только эта модель"),
    "only the baseline is right": ("基準モデルだけが正解", "права только базовая модель сравнения"),
    "orders agree": ("順序を入れ替えても同じ判定", "одинаковые вердикты в обоих порядках"),
    "win rate": ("勝率", "доля побед"),
    "win rate, length-controlled": ("勝率（長さを補正）", "доля побед с поправкой на длину"),
    "win rate, style-controlled": ("勝率（文体を補正）", "доля побед с поправкой на стиль"),
    "win rate, unleaked": ("勝率（学習していない質問のみ）", "доля побед на вопросах вне обучения"),
    "Elo": ("Elo", "Elo"),
    "mean tokens": ("平均トークン数", "среднее число токенов"),
    "rows won": ("勝ち", "победы"),
    "rows tied": ("引き分け", "ничьи"),
    "rows lost": ("負け", "поражения"),
    "questions": ("質問数", "вопросы"),
    "tied: right answers first": ("Ties：正解がすべて上位", "Ties: верные ответы впереди"),
    "ref: right answer first": ("参照：正解が 1 位", "ref: верный ответ впереди"),
    "gap of tied > spread": ("Ties の差 > ばらつき", "отрыв в Ties > разброса"),
    "smaller gap > spread": ("小さい方の差 > ばらつき", "меньший отрыв > разброса"),
    "size of the gap": ("差の大きさ", "величина отрыва"),
    "Ties score": ("Ties スコア", "оценка Ties"),
    "cut off": ("途中で打ち切られた応答", "обрезанные ответы"),
    "empty": ("空の応答", "пустые ответы"),
    "template leaks": ("テンプレートの混入", "обрывки шаблона"),
    "role headers": ("役割の見出し", "заголовки ролей"),
    "language drift": ("別の言語での応答", "ответ на другом языке"),
    "foreign letters": ("他の言語の文字", "чужие буквы"),
    "repetition": ("繰り返し", "повторы"),
    "loops": ("ループ", "зацикливание"),
    "distinct-1": ("distinct-1", "distinct-1"),
    "distinct-2": ("distinct-2", "distinct-2"),
    "distinct-3": ("distinct-3", "distinct-3"),
    "self-BLEU": ("self-BLEU", "self-BLEU"),
    "Vendi score": ("Vendi スコア", "оценка Vendi"),
    "homogenisation": ("均質化", "однообразие"),
    "distinct-2 per prompt": ("distinct-2（プロンプトごと）", "distinct-2 по промптам"),
    "self-BLEU per prompt": ("self-BLEU（プロンプトごと）", "self-BLEU по промптам"),
    "spread per prompt": ("散らばり（プロンプトごと）", "разброс по промптам"),
    "Vendi score per prompt": ("Vendi スコア（プロンプトごと）", "оценка Vendi по промптам"),
    "answer entropy (bits)": ("応答のエントロピー（ビット）", "энтропия ответов (биты)"),
    "spread over wordings": ("言い換えによる散らばり", "разброс по формулировкам"),
    "score": ("スコア", "оценка"),
    "api errors": ("API エラー", "ошибки API"),
    "unreadable": ("読み取れない判定", "нечитаемые вердикты"),
    "correct": ("正答", "верные ответы"),
    "ROUGE-L": ("ROUGE-L", "ROUGE-L"),
    "ids: difference in number": ("ID：個数の差", "id: разница в количестве"),
    "ids: difference in place": ("ID：位置の差", "id: разница в позициях"),
    "ids: F1": ("ID：F1", "id: F1"),
    "ids: exact": ("ID：完全一致", "id: полное совпадение"),
    "ids: not readable": ("ID：読み取り不能", "id: не прочитаны"),
    "ids: unknown": ("ID：存在しない文書", "id: неизвестные"),
    "unsupported": ("文書に根拠のない文", "предложения без опоры на документы"),
    "KL (nats)": ("KL（nat）", "KL (нат)"),
    "KL (nats per token)": ("KL（トークンあたり nat）", "KL (нат на токен)"),
    "as good as best of": ("同等となる best of n の n", "равноценно best of n"),
    "accepted": ("許容される応答", "приемлемые ответы"),
    "violating": ("違反", "нарушения"),
    "borderline": ("境界例", "пограничные случаи"),
    "refused": ("拒否", "отказы"),
}
"""Columns of benchmarks; those that METRICS has are not here."""
PARTS = {
    "accuracy by set": ("データセット別の正解率", "точность по наборам"),
    "accuracy by category": ("カテゴリー別の正解率", "точность по категориям"),
    "bootstrap over prompts": ("プロンプト単位のブートストラップ", "бутстрэп по промптам"),
    "accuracy by length of people's choice": (
        "人が選んだ応答の長さ別の正解率",
        "точность по длине ответа, выбранного людьми",
    ),
    "calibration": ("較正", "калибровка"),
    "McNemar's test": ("マクネマー検定", "критерий Макнемара"),
    "corrected for the judge's errors": ("判定者の誤りを補正した値", "с поправкой на ошибки судьи"),
    "games": ("対戦", "партии"),
    "intervals as published": ("公開済みの表と同じ方法の区間", "интервалы, как в опубликованных таблицах"),
    "by category": ("カテゴリー別", "по категориям"),
    "by metric": ("評価項目別", "по метрикам"),
    "by round": ("ラウンド別", "по раундам"),
    "score by round": ("ラウンド別のスコア", "оценка по раундам"),
    "Ties score, its parts": ("Ties スコアの内訳", "составляющие оценки Ties"),
    "best of n of the baseline": ("基準モデルの best of n", "best of n базовой модели сравнения"),
    "in domain": ("領域内の質問", "вопросы по теме документов"),
    "out of domain": ("領域外の質問", "вопросы вне темы документов"),
    "likeness between models": ("モデル間の類似度", "сходство моделей"),
}
"""Titles of the parts of benchmarks."""
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
    "turn ": ("ターン ", "реплика "),
    "round ": ("ラウンド ", "раунд "),
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
    (
        r"(\d+) of (\d+) records matched and were left out",
        r"\2 件のうち、一致した \1 件を除外",
        r"удалены совпавшие записи: \1 из \2",
    ),
    (r"^(\d+) of (\d+)$", r"\2 件中 \1 件", r"\1 из \2"),
    (r"^no grade of (\d+)$", r"\1 件とも採点なし", r"без оценки: \1"),
    (r"^(\d+) failed$", r"失敗 \1 件", r"сбоев: \1"),
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
    """The name of a metric, or of a benchmark's column."""
    return _named(METRICS | FIGURES, name, language)


def part(title: str, language: str) -> str:
    """The title of a part of a benchmark."""
    return _named(PARTS, title, language)


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

"""Stage 3 · dispatcher, command line · the vocabulary of the features: words that say what a prompt is about. Data.

Each set is one feature's words, in the languages that users write; a word may stand in several. Scripts without spaces
are looked up as pieces of text, the others as whole words, lower case.
"""

from __future__ import annotations


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _list(text: str) -> tuple[str, ...]:
    return tuple(piece.strip() for piece in text.split("|"))


LANGUAGES = _set(
    "python python3 javascript typescript rust golang java c++ cpp c# csharp kotlin swift php ruby perl haskell scala "
    "lua julia matlab fortran cobol erlang elixir ocaml clojure lisp scheme prolog vba powershell bash zsh sql mysql "
    "postgres postgresql sqlite mongodb redis html css sass jquery react vue angular svelte django flask fastapi rails "
    "laravel spring node nodejs npm pip numpy pandas matplotlib tensorflow pytorch sklearn keras opencv docker "
    "dockerfile kubernetes kubectl terraform ansible nginx git github gitlab linux ubuntu shell regex regexp json yaml "
    "toml xml csv graphql grpc makefile cmake gcc clang llvm webpack verilog vhdl solidity assembly x86 arm64 wasm awk "
    "sed grep cron systemd ssh vim emacs vscode jupyter dataframe sqlalchemy pydantic pytest junit jest asyncio aws s3 "
    "lambda heroku selenium beautifulsoup scipy seaborn plotly excel latex"
)
CODE_NOUNS = _set(
    "function functions method methods class classes array arrays string strings list linkedlist tuple tuples dict "
    "dictionary hashmap hash map stack queue heap tree node nodes pointer pointers variable variables loop loops "
    "recursion recursive algorithm algorithms script scripts program programs code codebase snippet module modules "
    "package library api endpoint endpoints database query queries table column index server client thread threads "
    "mutex async await callback promise exception exceptions stderr stdout stdin file files path directory folder "
    "parser compiler interpreter runtime debugger linter binary bit bits byte bytes int integer integers float boolean "
    "char json object objects instance constructor inheritance polymorphism interface generics iterator generator "
    "decorator lambda closure enum struct template repository repo commit branch merge rebase unittest tests test "
    "substring subarray subsequence palindrome matrix row element elements iterable url http request response header "
    "cookie session token socket port proxy cache log logging timestamp datetime encoding utf8 unicode ascii base64 "
    "input output return returns returned argument arguments parameter parameters signature docstring "
    "función funciones "
    "código programa clase arreglo cadena bucle fichero fonction classe tableau chaîne boucle fichier funktion klasse "
    "schleife datei zeichenkette programm skript função laço arquivo funzione codice функция функцию функции код "
    "программу программа класс массив строку цикл скрипт funkcja funkcję kod tablica pętla"
)
CODE_VERBS = _set(
    "implement code program debug refactor compile parse serialize deserialize fetch sort reverse concatenate iterate "
    "import export install deploy optimize instantiate override initialize append insert delete remove rename sum "
    "convert extract split join merge download upload read write print return returns lint containerize implementa "
    "programa depura refactoriza implémente débogue programmiere implementiere schreibe implemente escreva scrivi "
    "napisz напиши реализуй исправь"
)
CODE_SURE = _set(
    "traceback segfault stacktrace nullpointerexception typeerror valueerror keyerror indexerror syntaxerror "
    "attributeerror nameerror runtimeerror undefined nan npe oom deadlock goroutine malloc printf println console.log "
    "stdin stdout stderr sudo chmod localhost regexes dataclass middleware orm crud restful webhook dockerfile "
    "microservice microservices websocket unittest linter eslint refactoring codebase boolean coder programmer "
    "programming programmers developers debugging compiler compilers hacker coding algorithm subarray substring "
    "leetcode bitmask bitwise programación programador programmation programmieren programmierung программирование"
)
MATH_VERBS = _set(
    "solve calculate compute evaluate simplify factor factorize differentiate integrate prove multiply divide subtract "
    "add plus minus times divided round estimate approximate expand rationalize convert find determine "
    "resuelve calcula "
    "simplifica demuestra deriva integra halla résous résoudre calcule calculez simplifie démontre "
    "dérive löse berechne "
    "vereinfache beweise bestimme leite resolva simplifique risolvi calcola dimostra реши вычисли найди найдите докажи "
    "докажите упрости решите oblicz rozwiąż udowodnij"
)
MATH_NOUNS = _set(
    "equation equations integral integrals derivative derivatives polynomial polynomials matrix matrices determinant "
    "eigenvalue eigenvalues eigenvector vector vectors triangle triangles circle circles square rectangle rectangles "
    "polygon hexagon cube sphere cylinder cone angle angles radius diameter circumference perimeter area volume "
    "hypotenuse parallelogram trapezoid slope intercept parabola ellipse hyperbola asymptote domain range function "
    "functions limit series sequence sum product quotient remainder factor factors multiple divisor divisors prime "
    "primes modulo gcd lcm fraction fractions decimal percent percentage ratio proportion probability permutation "
    "permutations combinations binomial median mean mode variance deviation dice coin coins logarithm exponent root "
    "roots squared cubed theorem proof lemma algebra calculus geometry trigonometry arithmetic statistics integer "
    "integers digit digits number numbers complex real coefficient coefficients coordinates coordinate plane graph "
    "average total speed rate distance interest profit discount cost price each altogether remaining left twice half "
    "thrice dozen cents dollars dollar pounds miles hours minutes km meters feet inches kg liters gallons ecuación "
    "derivada matriz raíz área triángulo probabilidad fracción porcentaje équation dérivée intégrale "
    "racine probabilité "
    "gleichung ableitung wurzel dreieck wahrscheinlichkeit fläche bruch prozent equação equazione derivata probabilità "
    "уравнение интеграл производную производная матрица корень треугольник вероятность площадь równanie pochodna całka "
    "trójkąt prawdopodobieństwo"
)
MATH_SURE = _set(
    "equation equations integral integrals derivative antiderivative polynomial polynomials determinant eigenvalue "
    "eigenvalues hypotenuse trigonometric trigonometry logarithm logarithmic quadratic modulo gcd lcm asymptote "
    "eigenvectors parabola theorem congruent isosceles equilateral coprime divisible factorial binomial cosine sine "
    "tangent arithmetic algebra calculus geometry ecuación derivada équation intégrale dérivée gleichung ableitung "
    "equação equazione integrale уравнение интеграл производную производная równanie całka pochodna"
)
WORD_PROBLEM = _set(
    "bought buys buy sold sells sell gave gives spent spends spend earns earned earn costs cost paid pays pay saves "
    "saved eats ate has had have each altogether total left more fewer less many much apples oranges marbles candies "
    "cookies stickers pencils books cards tickets coins bags boxes baskets students friends children "
    "brother sister per "
    "hour hours minute minutes day days week weeks month year years old age twice half times dozen "
    "equally share shared "
    "remaining together how"
)
REASON_SURE = _set(
    "syllogism syllogisms deduce deduction premise premises riddle riddles puzzle puzzles paradox knights knaves knave "
    "liar truth-teller antecedent fallacy fallacious logically entails entail entailment inference infer inferred "
    "inferences hypothesis contrapositive valid invalid brackets alphabetically sequence availability "
    "silogismo premisa "
    "premisas acertijo adivinanza syllogisme prémisse devinette énigme rätsel prämisse schlussfolgerung "
    "enigma premissa "
    "indovinello загадка силлогизм посылки zagadka"
)
REASON_ORDER = _set(
    "taller shorter older younger faster slower heavier lighter left right leftmost rightmost front behind between "
    "adjacent next beside opposite first second third fourth fifth last before after above below immediately directly "
    "seated sits sitting finished ranked facing clockwise east west north south consecutive exactly either neither nor "
    "both every all none some no if then unless only must cannot could true false uncertain"
)
REASON_ARGUMENT = _set(
    "argument argues argument's conclusion conclude concluded assumption assumes assume strengthen strengthens weaken "
    "weakens undermine undermines flaw flawed reasoning inferred inference support supported supports explain resolve "
    "discrepancy paradox principle evidence claim claims statement statements follows follow therefore thus hence "
    "because since analogous parallel vulnerable criticism editorial columnist politician critic scientist"
)
CHAT = _set(
    "hi hello hey hiya yo thanks thank please sorry bye goodbye goodnight morning ok okay yes no yeah yep nope sure "
    "maybe lol haha wow cool nice great awesome fine you your you're yours u ur yourself i i'm i'd i've me my we hola "
    "gracias adiós buenos buenas sí bonjour salut merci oui hallo danke guten tschüss ja nein ciao grazie obrigado "
    "obrigada olá привет спасибо пока да нет cześć dzięki"
)
COMMANDS = _set(
    "alarm timer reminder remind weather music song playlist volume call text lights light turn cancel "
    "repeat stop book "
    "reserve flight hotel balance account card credit bill pay transfer bank traffic directions gas tire oil schedule "
    "calendar meeting shopping order reservation recipe calories pin"
)
WRITING = _set(
    "write essay story poem haiku sonnet letter email e-mail blog article tweet slogan caption speech script lyrics "
    "song dialogue paragraph summary summarize summarise paraphrase rewrite rephrase translate translation proofread "
    "grammar edit draft compose review headline advertisement outline brainstorm suggest recommend list describe "
    "classify sentence sentences passage text title name names topic tone escribe resume traduce carta cuento poema "
    "écris résume traduis lettre histoire poème schreib übersetze zusammenfassen brief gedicht escreva traduza scrivi "
    "traduci lettera переведи письмо рассказ стихотворение napisz przetłumacz"
)
EXPLAINING = _set(
    "explain why how describe compare contrast discuss analyze analyse evaluate assess critique examine interpret "
    "implications philosophical consequences effects impact differences difference advantages disadvantages pros cons "
    "argue justify synthesize elaborate overview history theory explica compara analiza explique comparez erkläre "
    "erklären vergleiche analysiere spiega confronta объясни сравни wyjaśnij porównaj"
)
HARD = _set(
    "implications philosophical comprehensive detailed rigorous rigorously critique synthesize evaluate "
    "analyze analyse "
    "assess optimal optimize minimize maximize minimum maximum asymptotic distributed concurrent concurrency lock-free "
    "linearizable consensus scalable fault-tolerant throughput latency architecture tradeoffs trade-offs theorem prove "
    "proof lemma integral eigenvalue polynomial polynomials complex modulo lexicographically subsequence bitmask "
    "permutation permutations combinatorial inequality convergence topology manifold homomorphism stochastic bayesian "
    "econometric regulatory jurisprudence constitutional pathophysiology differential pharmacokinetics epistemology "
    "epistemological metaphysics ontology deontological utilitarian geopolitical macroeconomic monetary "
    "fiscal hegemony "
    "postcolonial quantum thermodynamic entropy relativity genome crispr mitochondrial neural transformer gradient "
    "reinforcement cryptographic zero-knowledge formal verification compiler garbage allocator kernel "
    "derive derivation "
    "generalize counterexample nontrivial holistic interdisciplinary paradigm dialectic methodology empirical "
    "hypothesis statistical regression longitudinal causal confounding implicaciones filosóficas philosophiques "
    "philosophischen auswirkungen implicações implicazioni filosofiche философские последствия докажите demuestra "
    "démontrer beweise"
)
EASY = _set(
    "hello hi hey thanks simple basic easy beginner example tip tips quick short favorite favourite joke color colour "
    "capital day week name like love happy sad tired hungry food dog cat sum double reverse print count even odd list "
    "string total left altogether each apples how many much"
)
PROOF = _set("prove proof show derive justify demonstrate demuestra démontre démontrer beweise beweis докажи докажите")
DESIGN = _set(
    "design architect architecture scalable distributed concurrent concurrency fault-tolerant consistency throughput "
    "lock-free thread-safe optimize optimise tradeoffs trade-offs efficient efficiently performance pipeline"
)
EXTREMES = _set(
    "maximum minimum maximize minimize maximise minimise largest smallest longest shortest fewest greatest least most "
    "optimal possible distinct different"
)
GRAPHS = _set(
    "graph node nodes edge edges subtree spanning dag trie bitmask programming memoization knapsack topological "
    "union-find backtracking subsequence subsequences subarray subarrays partition operation operations interval "
    "intervals queries weighted cycle cycles grid cells permutation permutations"
)
ADVANCED_MATHS = _set(
    "complex polynomial polynomials eigenvalue eigenvalues trigonometric recurrence inequality geometric convergent "
    "converge converges differential integral bijection modular residue perpendicular bisector circumcircle incircle "
    "inscribed circumscribed tangent roots vectors vector projection matrix determinant logarithm series sequence "
    "probability expected randomly divisor divisors modulo congruent ordered pairs triples coefficient coefficients "
    "real nonzero satisfies satisfy ellipse hyperbola parabola asymptote periodic functional"
)
SCHOLARLY = _set(
    "implications implication philosophical philosophy epistemology epistemological ontological jurisprudence "
    "constitutional statute statutory pathology pathophysiology pharmacology pharmacological diagnosis clinical "
    "molecular quantum thermodynamics thermodynamic macroeconomic geopolitical theoretical empirical hypothesis "
    "methodology regulatory regulation regulations critically mechanism mechanisms framework frameworks paradigm "
    "socioeconomic postcolonial hegemony dialectic patient patients treatment therapy disease protein receptor enzyme "
    "legal liability contract court doctrine precedent policy policies economic economics monetary fiscal inflation "
    "equilibrium ethical ethics moral morality democracy ideology capitalism historiography literary narrative "
    "symbolism neural cognitive evolutionary ecological sustainability governance stakeholders strategic strategy "
    "filosóficas filosófica philosophiques philosophischen философские"
)
TASK_WORDS = _set(
    "task given provided premise hypothesis passage context paragraph following below classify label output input "
    "answer question options instruction instructions statement generate sentence dialogue"
)
SPELLED = _set(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half third "
    "quarter dozen"
)
OPERATIONS = _set(
    "plus minus times divided multiplied over squared cubed percent sum difference product quotient root power modulo "
    "add subtract multiply divide"
)
QUANTITY = _set(
    "many much far long cuántos cuántas cuánto cuánta combien viele viel quanti quante quantos quantas сколько ile"
)
FAMILY = _set(
    "father mother brother sister son daughter uncle aunt cousin niece nephew grandfather grandmother related husband "
    "wife"
)
COLOURS = _set(
    "red blue green yellow orange purple black white grey gray brown pink silver gold teal turquoise magenta burgundy"
)
MOVES = _set("turn steps step forward backward facing swap swaps swapped switch switches trade trades left right")
TRUTH = _set("truth lie lies liar liars lying knight knights knave knaves truthful spy")
FIND = _set("find determine compute calculate evaluate what what's is give express")
VALUE = _set(
    "value sum product difference area volume perimeter probability remainder number average mean median ratio length "
    "angle distance percentage maximum minimum smallest largest derivative integral limit slope equation root solution "
    "solutions roots polynomial determinant inverse total"
)
MAKE = _set(
    "write create implement build make give need code complete fill design fix refactor generate develop escribe "
    "implementa crea haz écris implémente crée schreibe implementiere erstelle escreva implemente crie scrivi "
    "napisz stwórz напиши реализуй создай"
)
PROGRAM = _set(
    "function script program class method query regex code algorithm api app parser decorator lambda macro test "
    "tests webpage website procedure one-liner component module cli bot scraper server hook endpoint schema "
    "función funciones fonction fonctions funktion função funções funzione funkcję funkcja функцию функция "
    "programa programme programm скрипт код código codice skript consulta requête classe klasse"
)
COMPOSE = _set(
    "write compose draft create generate give make tell escribe écris schreibe escreva scrivi napisz напиши "
    "redacta rédige verfasse"
)
PROSE = _set(
    "essay story poem haiku song lyrics letter email e-mail blog article tweet slogan caption speech paragraph "
    "summary review headline joke message post dialogue tagline biography bio report memo recipe itinerary plan "
    "toast carta poema cuento ensayo correo lettre poème histoire dissertation brief gedicht geschichte aufsatz "
    "redação conto lettera poesia racconto saggio list wiersz письмо стихотворение рассказ"
)
GIVEN = _set("given have consider there are")
CONTAINER = _set("array string strings matrix list tree graph grid integer integers nums stack intervals linked binary")
RETURN = _set("return returns print output")
MUST = _set("must could can cannot may")
TRUE = _set("true false order selected included assigned scheduled")
WHICH = _set("which following except statement statements")
SECOND_PERSON = _set("you your you're yours yourself u")
I_WORDS = _set("i i'm i'd i've i'll my me mine we our")
ASKING = _set("what who when where which whose is are was were does do did can has name whats what's")
ORDERING = _set("why how explain describe discuss compare analyze analyse evaluate critique assess argue")

PHRASES: dict[str, frozenset[str]] = {
    "asks_which": frozenset(
        _list(
            "which one | of the | the following | following is | must be | could be | be true | cannot be | most "
            "strongly | best describes | most accurately | if true"
        )
    ),
    "follows": frozenset(
        _list(
            "true or | or false | true false | or uncertain | does it | it follow | logically follow | "
            "follows from | "
            "conclude that | can we | we conclude | be concluded | be inferred"
        )
    ),
    "rules": frozenset(
        _list(
            "older than | younger than | taller than | shorter than | heavier than | faster than | left of | "
            "right of | "
            "front of | next to | immediately before | immediately after | exactly one | exactly two | "
            "exactly three | "
            "at least | at most | no two | each of | either or | not both | if and | only if | directly above | "
            "directly below | sits between | day before | day after | before the | earlier than | later than"
        )
    ),
    "riddles": frozenset(
        _list(
            "what am | am i | odd one | one out | not belong | comes next | is to | what comes | "
            "tells the | the truth "
            "| always lies | original position | starting point"
        )
    ),
    "word_sums": frozenset(
        _list(
            "how many | how much | how far | how long | how old | in total | in all | are left | did she | "
            "did he | "
            "does he | does she | do they | will he | will she | per hour | an hour | a day | each day | "
            "per day | as "
            "many | as much | more than | fewer than | less than | times as | gave away | at first"
        )
    ),
    "chatty": frozenset(
        _list(
            "are you | do you | tell me | can you | how are | what's your | your name | have you | i am | i feel | "
            "thank you | i need | i want | let me | i'd like | do i | my account"
        )
    ),
    "tasks": frozenset(
        _list(
            "this task | you are | are given | your task | the following | given a | given the | the passage | the "
            "sentence | the text | based on | the context | the article"
        )
    ),
    "steps": frozenset(
        _list(
            "number of | how many | as a | in terms | terms of | such that | for all | greater than | less than "
            "| whose "
            "sum | simplest form | common fraction | lowest terms | to the | nearest | real numbers | "
            "positive integer "
            "| positive integers | ordered pairs"
        )
    ),
    "coding": frozenset(
        _list(
            "in python | using python | in java | in javascript | a function | write a | source code | "
            "the code | this "
            "code | my code | a list | a string | the array | an array | linked list | binary tree | "
            "binary search | "
            "data structure | unit tests | data frame | stack overflow | command line | time complexity | space "
            "complexity | index out | null pointer | with pandas | in sql | in c | in rust | in go | "
            "in react | return "
            "the | you are | given an | given string | the given | given list | given number | "
            "given array | integer "
            "array | in bash | git commit | pull request | web app | web page | rest api | open source"
        )
    ),
}
PIECES: dict[str, tuple[str, ...]] = {
    "code": _list(
        "函数 | 函數 | 代码 | 代碼 | 编程 | 程式 | 程序 | 算法 | 数组 | 脚本 | 変数 | 関数 | コード | "
        "プログラム | 配列 | スクリプト | 함수 | 코드 | 프로그램 | 배열 | "
        "फ़ंक्शन | कोड | प्रोग्राम | دالة | برنامج | خوارزمية | كود | 报错 | 调试 | 正则 | 数据库 | バグ | エラー"
    ),
    "math": _list(
        "方程 | 积分 | 導関数 | 微分 | 积 | 概率 | 三角形 | 求解 | 计算 | 証明 | 证明 | 多少 | 矩阵 | "
        "確率 | 方程式 | 積分 | 計算 | 面積 | 面积 | 半径 | いくつ | "
        "いくら | 방정식 | 적분 | 미분 | 확률 | 계산 | 몇 개 | समीकरण | हल करें | गणना | समाकलन | "
        "कितने | معادلة | احسب | "
        "تكامل | مشتقة "
        "| مثلث | احتمال | كم"
    ),
    "reasoning": _list(
        "推理 | 谜语 | 謎 | なぞなぞ | 前提 | 结论 | 結論 | 论证 | 逻辑 | 論理 | 수수께끼 | 전제 | "
        "결론 | 논리 | पहेली | निष्कर्ष | لغز | استنتاج | "
        "مقدمات | 所有 | すべての | 모든 | सभी | كل | 说谎 | 嘘つき | 거짓말"
    ),
    "writing": _list(
        "翻译 | 翻訳 | 作文 | 文章 | 故事 | 诗 | 詩 | 手紙 | 邮件 | メール | 번역 | "
        "편지 | अनुवाद | कहानी | "
        "ترجم "
        "| قصة | رسالة"
    ),
    "explaining": _list(
        "解释 | 說明 | 说明 | 分析 | 比较 | 为什么 | 説明 | 比較 | なぜ | 影響 | 影响 | 설명 | 분석 | "
        "비교 | 왜 | समझाइए | विश्लेषण | क्यों | اشرح | "
        "حلل | قارن | لماذا"
    ),
    "chat": _list(
        "你好 | 谢谢 | 再见 | こんにちは | ありがとう | おはよう | 안녕 | 고마워 | नमस्ते | धन्यवाद | "
        "مرحبا | شكرا | 你 | あなた"
    ),
}

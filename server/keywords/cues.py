"""Words that tell what a query wants, in English and Chinese: our own lists, small on purpose.

All patterns are written for text in normal form (`index.text.normalise`): lower case, one space.
A weak negation cue is also part of ordinary product names ("non-stick", "无线"); whoever reads it
asks the catalogue first (`server.keywords.negation`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from server.keywords.keywords import Intent

_STOP = """
    a an and any are as at be been being but by can could did do does for from get give had has have
    he her here him his how i if in into is it its just let like make makes made me more most much
    my of on one onto or our out please really she should so some such than that the their them then
    there these they thing things this those to too up us use used using very want was we well were
    what when where which while who whom whose why will with would you your need needs looking look
    show find search something anything everything items item products product buy purchase shop
    want wants im i'm id i'd ill i'll whats what's also not no without nor non best good great
    recommend recommended recommendation recommendations suggest suggestion suggestions ideas idea
    alternative alternatives instead similar versus vs compare compared comparable essentials
    essential helps help helping am about around per each kind kinds type types sort sorts top rated
    ranking ranked better tell explain mean means must size sizes color colors colour colours
"""
STOP_WORDS = frozenset(_STOP.split())

# Chinese has no spaces: these are cut out of what the dictionary left over, longest first.
_CHINESE_STOP = """
    有没有 什么样的 什么 怎么样 怎么 如何 哪个 哪些 哪种 哪款 哪里 为什么 可以 适合 推荐 一下
    一款 一个 一些 比较好 最好 比较 好用 请问 请 我想要 我想买 我想 想要 想买 我要 给我 帮我
    我 买 找 送给 送 的 了 吗 呢 吧 啊 和 与 或者 或 跟 在 是 有 用 给 能 要 就 都 也 还 很
    类似 替代 平替 代替 同款 排行榜 排行 排名 必备 需要 带 款 些 种 个
"""
CHINESE_STOP = re.compile(
    "|".join(sorted(map(re.escape, _CHINESE_STOP.split()), key=len, reverse=True))
)

_INTENTS: Mapping[Intent, str] = {
    Intent.QUESTION: r"""
        \? | ^(?:what|which|how|why|who|where|when|whats|what's|is|are|can|could|do|does|should)\b
        | \b(?:what\ (?:is|are|to|do|helps?|kind|size)|how\ (?:to|do|does|much|many|long))\b
        | 什么|怎么|如何|为什么|哪个|哪些|哪种|哪款|哪里|多少|有没有|能不能|可不可以|吗$|呢$
    """,
    Intent.RECOMMENDATION: r"""
        \b(?:recommend\w*|suggest\w*|(?:gift|present)s?\ (?:for|ideas?)|ideas?\ for|ideas$
        |what\ (?:to\ (?:buy|get|give|wear|bring)|(?:do|should)\ i\ (?:need|buy|get|bring|wear))
        |(?:things|stuff)\ i\ need|essentials|must[ -]haves?|looking\ for\ something)\b
        | 推荐|必备|送(?:给|什么|男|女|妈|爸|老|朋|礼|长辈|孩)|适合.{0,8}(?:吗|什么|哪)|买什么|种草
    """,
    Intent.RANKING: r"""
        \b(?:best|top(?:[ -](?:\d+|rated|selling|ten|five|three))|(?:most|least)\ (?!of\b)\w+
        |cheapest|highest[ -]rated|best[ -]?sell(?:er|ers|ing)|ranking|ranked|lightest|strongest
        |quietest|smallest|largest|biggest|fastest|warmest)\b
        | 最(?!近|后|新款)|排行|排名|榜单|十大|销量|第一
    """,
    Intent.ALTERNATIVE: r"""
        \b(?:alternatives?\ (?:to|for)|alternative|substitutes?\ for|replacement\ for|similar\ to
        |same\ as|comparable\ to|instead\ of|rather\ than|dupes?\ (?:for|of)|vs\.?|versus
        |(?:something|anything|looks?|one|ones)\ like|cheaper\ than)\b
        | 类似|替代|平替|代替|同款|差不多|像.{1,8}一样
    """,
    Intent.FUNCTION: r"""
        \b(?:reliev\w+|reduc\w+|prevent\w*|remov\w+|get(?:ting)?\ rid\ of|repel\w*|protect\w*
        |improv\w+|boost\w*|sooth\w+|help(?:s|ing)?\ (?:with|me|to|sleep)
        |keep\w*\ \w+\ (?:warm|cool|dry|cold|hot)|block(?:s|ing)?\ out|sleep\ better|better\ sleep
        |good\ for|fix(?:ing)?|clean(?:ing)?\ (?:up|the)|treat(?:s|ing)?|eas(?:e|es|ing)
        |for\ (?:sore|dry|sensitive|back|neck|joint|cold|hot))\b
        | 缓解|治疗|改善|预防|防(?=[晒水滑潮蚊虫脱掉蛀])|去(?=[污渍屑黑黄味皱螨油])|祛|助眠|减肥
        | 瘦身|止(?=[痛痒汗咳])|保暖|降温|除(?=[湿味螨臭甲])|提神|消除|补水|美白|护(?=[腰膝眼肤发])
    """,
}
INTENT_PATTERNS: Mapping[Intent, re.Pattern[str]] = {
    intent: re.compile(pattern, re.VERBOSE) for intent, pattern in _INTENTS.items()
}

# What a shop's search cannot answer with an item.
NON_MERCHANDISE = re.compile(
    r"""
    \b(?:(?:track(?:ing)?|where(?:'s|\ is)|status\ of|cancel\w*|change)\b.{0,20}
        \b(?:orders?|packages?|parcels?|delivery|shipment)
    | order\ (?:status|history|number|tracking) | my\ (?:orders?|account|parcel)
    | (?:returns?|refunds?|exchange|warranty|privacy|shipping|delivery)\ (?:polic(?:y|ies)|address)
    | how\ (?:do\ i|to|can\ i)\ (?:return|cancel|pay|contact|exchange|get\ a\ refund)\b.*
    | (?:get|want|request|ask\ for)\ (?:a|my)\ (?:refund|money\ back) | refunds?
    | (?:store|opening|business|shop)\ (?:hours|times|location|locator) | near(?:est)?\ (?:me|store)
    | (?:are|is|when)\ .{0,12}\b(?:you|store|shop)\b.{0,12}\b(?:open|close[sd]?)
    | (?:customer|client)\ (?:service|support|care) | contact\ (?:us|number|support)
    | (?:phone|telephone|fax)\ number | live\ chat | speak\ to\ (?:a|an)\ \w+
    | (?:log|sign)\ ?(?:in|out|up) | (?:reset|forgot)\w*\ (?:my\ )?password | password
    | (?:promo|discount|coupon|voucher)\ codes? | coupons? | gift\ card\ balance
    | job\ application | careers | (?:do\ you|you)\ .{0,20}\b(?:ship|deliver)\b.*
    | (?:get\ )?free\ shipping | shipping\ cost
    | weather\ (?:today|tomorrow|forecast) | news\ today | who\ are\ you | tell\ me\ a\ joke)\b
    | ^(?:hello|hi|hey|thanks|thank\ you|test|good\ (?:morning|evening))[!. ]*$
    | (?:我的)?订单|物流|快递(?:到哪|查询|单号|什么时候)?|退货|退款|换货|(?:人工)?客服|优惠券|红包
    | 登录|密码|注册|营业时间|电话(?:号码)?$|投诉|发票|(?:多久|什么时候)(?:能)?(?:发货|到货|送到)
    | 发货|天气|^你好[!. ]*$|^谢谢
    """,
    re.VERBOSE,
)

# Asks for knowledge; about things of the catalogue such a question may still want one.
KNOWLEDGE = re.compile(
    r"^(?:what (?:does|did) .* mean|(?:meaning|definition) of|who (?:is|are|was)"
    r"|when (?:is|was|did)|why (?:is|are|do|does|did))\b|什么意思|是谁|为什么"
)

# The thing that an alternative is wanted for; it is what must not be shown.
ALTERNATIVE_TO = r"""
    (?:(?:cheaper|good|better|best)\ )?alternatives?\ (?:to|for)|substitutes?\ for
    |dupes?\ (?:for|of)
"""
STRONG_NEGATION = re.compile(
    rf"""
    (?<![\w'])(?:{ALTERNATIVE_TO}
    | without | w/o | with\ no | except(?:\ for)? | excluding | excludes? | other\ than
    | anything\ but | but\ (?:not|no) | instead\ of | rather\ than | apart\ from | minus
    | free\ (?:of|from)
    | (?:i\ )?(?:do\ not|don['’]?t|does\ not|doesn['’]?t|did\ not|didn['’]?t|won['’]?t|isn['’]?t
        |aren['’]?t|can['’]?t|cannot)
      (?:\ (?:want|need|like|have|has|contain|use|include|be|stand))?
    | avoid(?:ing)? | never
    | not?\ (?:from|made\ (?:of|from|with|by|in)|by|with|including|containing|using|in|any|the|a
        |an|for)
    )\b
    | 不想要|不要|不含有?|不带|不用|不是|不需要|不能有|(?<!有)没有|除了|除开|除去|拒绝|避免|去掉
    | 不喜欢|不包含|不吃
    """,
    re.VERBOSE,
)
WEAK_NEGATION = re.compile(r"(?<![\w'-])(?:non-?|not?|nor)(?![\w'])|(?<![\w'-])non-|无|非|不|免|别")
# "x free" that says something else than "without x".
FREE_SUFFIX = re.compile(
    r"(?<![\w'-])([^\W\d_]{3,}(?: [^\W\d_]{3,})?)(?:-| )free(?![\w-]| (?:standing|of|from|shipping"
    r"|delivery|returns?|gifts?|samples?|postage|range|weights?|flow|style|trial|size)\b)"
)
NOT_FREE_OF = frozenset(
    ("hands", "duty", "tax", "care", "stress", "maintenance", "feel", "for", "get", "hassle")
)

# Where a negation's reach ends. "and" ends it only where the cue is a plain "not".
SCOPE_END = re.compile(
    r"""
    [,;:?!()，。；！？、（）] | \.(?=\s|$)
    | \s(?:but|for|that|which|when|if|so|please|under|below|over|above|up\ to|with|in|on|to|made
        |suitable|because|just|only)\b
    | 的 | 但 | 以外 | 之外 | (?<=\S)外(?=\s|$|的)
    """,
    re.VERBOSE,
)
SCOPE_JOIN = re.compile(
    r"\s+(?:or|and|nor|no|not|without|&)\s+|\s*/\s*|和|或者?|与|跟|、|也不要|及"
)

# Chinese product words that begin with a weak cue, for catalogues that do not have them.
_COMPOUNDS = """
    无线 无人 无尘 无缝 无框 无绳 无极 无影 无痕 无袖 无骨 无纺 无铅 无钢 无油 不锈
    不粘 不倒 不织 不沾 不限 不求 不一 不同 不易 不够 不仅 不变 不错 不断 不知 无敌
    无比 无穷 无所 无论 非凡 非洲 非遗 非常 免洗 免烫 免打 免钉 免安 免充 免费 免手
    免税 免熨 免煮 免邮 别人 别样 特别 别墅 别针 级别 性别
"""
CHINESE_COMPOUNDS = frozenset(_COMPOUNDS.split())
_ENGLISH_COMPOUNDS = """
    non stick, non slip, non skid, non toxic, non woven, non sanded, non fiction, no show, no iron,
    no drill, no tie, no sew, no bake, no frost, no touch, no spill, hands free, free standing,
    non conductive, non metallic, non contact, no trespassing, no parking, no smoking, no entry
"""
ENGLISH_COMPOUNDS = frozenset(part.strip() for part in _ENGLISH_COMPOUNDS.split(","))

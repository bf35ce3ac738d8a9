"""The sentences of the tab A/B and of drift, in English and in Chinese; part of `TEXTS`."""

from __future__ import annotations

EXPERIMENT: dict[str, tuple[str, str]] = {
    "model.drift": ("Drift", "漂移"),
    "drift.help": (
        "Images of the last {hours} hours ({images}) beside {reference} images that the version was not trained on. The population stability index (PSI) is 0 where nothing changed; what chance explains is no drift.",
        "将最近 {hours} 小时的 {images} 张图像与 {reference} 张未参与训练的图像比较。群体稳定性指数为 0 表示没有变化；偶然波动不算漂移。",
    ),
    "drift.few": (
        "In the last {hours} hours there were {images} images; at least {least} are needed to tell drift.",
        "最近 {hours} 小时有 {images} 张图像；判断漂移至少需要 {least} 张。",
    ),
    "drift.no_reference": (
        "This version’s manifest has no reference to compare with: it was exported before one was kept.",
        "此版本的清单中没有可供比较的参考数据：它导出时尚未记录。",
    ),
    "drift.feature": ("Feature", "特征"),
    "drift.psi": ("PSI", "群体稳定性指数"),
    "drift.chance": ("By chance", "偶然波动"),
    "drift.level": ("Drift", "漂移"),
    "drift.labels": ("labels", "类别"),
    "drift.confidence": ("confidence", "置信度"),
    "drift.brightness": ("brightness", "亮度"),
    "drift.contrast": ("contrast", "对比度"),
    "drift.in_distribution": ("like the training images", "与训练图像相似"),
    "drift.none": ("none", "无"),
    "drift.warn": ("some", "有"),
    "drift.alert": ("strong", "严重"),
    "ab.intro": (
        "Answers and feedback of the last {days} days. A user stays with one version, so users are compared, not requests. Look as often as you like: the interval and p are made for it.",
        "最近 {days} 天的回答与反馈。每位用户只使用一个版本，因此按用户而不是按请求比较。可以随时查看：区间和 p 值适用于反复查看。",
    ),
    "ab.off": ("Records are off on this server, so nothing can be compared.", "此服务器未开启记录，因此无法比较。"),
    "ab.no_records": (
        "Nothing is recorded of the last {days} days. Classify some photos and say whether the answers are right.",
        "最近 {days} 天没有记录。请识别一些照片，并说明结果是否正确。",
    ),
    "ab.one_version": (
        "Only one version has answered: there is nothing to compare yet.",
        "只有一个版本给出过回答，暂时无法比较。",
    ),
    "ab.no_trial": (
        "No A/B test with answers by both of its versions is running: compared are the two versions that answered most, {first} and {second}.",
        "当前没有两个版本都已给出回答的 A/B 测试：比较的是回答最多的两个版本，即版本 {first} 和版本 {second}。",
    ),
    "ab.few": (
        "Not decided yet: feedback by at least {users} users of each version is needed.",
        "尚无结论：每个版本至少需要 {users} 位用户的反馈。",
    ),
    "ab.open": ("Not decided yet: the interval of the difference holds zero.", "尚无结论：差值的区间包含零。"),
    "ab.better": ("Version {better} is better than version {other}.", "版本 {better} 优于版本 {other}。"),
    "ab.difference": (
        "Accuracy of version {second} less that of version {first}: {value} points, 95 % at all times {low} to {high}, p {p}.",
        "版本 {second} 与版本 {first} 的准确率之差：{value} 个百分点，任意时刻 95% 区间 {low} 至 {high}，p {p}。",
    ),
    "ab.needed": (
        "To find a difference of {effect} points in four of five cases, about {needed} answers with feedback are needed; there are {there}.",
        "要在五次中有四次发现 {effect} 个百分点的差异，约需 {needed} 个带反馈的回答；目前有 {there} 个。",
    ),
    "ab.cut": ("Only the newest {most} records are looked at.", "仅查看最新的 {most} 条记录。"),
    "ab.table": ("Versions", "各版本"),
    "ab.requests": ("Requests", "请求数"),
    "ab.latency": ("Latency in ms: median, 95th percentile", "延迟（毫秒）：中位数、95% 分位"),
    "ab.confidence": ("Mean confidence", "平均置信度"),
    "ab.in_distribution": ("Like the training images", "与训练图像相似"),
    "ab.shadow": ("Differs in shadow", "影子流量中不一致"),
    "ab.feedback": ("Feedback (users)", "反馈（用户）"),
    "ab.accuracy": ("Accuracy by feedback, 95 % interval", "按反馈的准确率，95% 区间"),
    "ab.of": ("{share} of {all}", "{all} 中的 {share}"),
    "ab.to": ("{share} ({low} to {high})", "{share}（{low} 至 {high}）"),
    "ab.plot": ("Difference and its interval, in points", "差值及其区间（百分点）"),
    "ab.axis": ("answers with feedback", "带反馈的回答数"),
}

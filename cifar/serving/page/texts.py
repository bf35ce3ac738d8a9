"""Every sentence of the page, in English and in Chinese, side by side.

The page holds both languages at once and shows one (`html[lang]` in `page.css`), so that switching asks nobody and loses
nothing. What programs read (CSV, JSON, the API) is English.
"""

from __future__ import annotations

import html
from typing import NamedTuple

from cifar.errors import CifarError
from cifar.serving.page.texts_experiment import EXPERIMENT


class Words(NamedTuple):
    """One text in both languages."""

    en: str
    zh: str


LANGUAGES = {"en": "en", "zh": "zh-CN"}
"""Field of `Words`, and the name that browsers and Gradio give the language."""

AUTOMATIC = "auto"
"""A choice of versions, which can hold no more than plain text: whichever answers this visitor."""

TEXTS: dict[str, Words] = {
    "intro": Words(
        "Drop a photo, paste one, or use the camera. The model answers with the most likely of its {count} classes: {names}.",
        "拖入、粘贴一张照片，或使用摄像头。模型会从 {count} 个类别中给出最可能的答案：{names}。",
    ),
    "sign_out": Words("Sign out", "退出登录"),
    "tab.classify": Words("Classify", "识别"),
    "tab.batch": Words("Batch", "批量"),
    "tab.compare": Words("Compare", "对比"),
    "tab.model": Words("Model", "模型"),
    "tab.ab": Words("A/B", "A/B 测试"),
    "tab.code": Words("Use it from code", "代码调用"),
    "photo": Words("Photo", "照片"),
    "photo.drop": Words("Drop a photo here, or click to choose one", "将照片拖到此处，或点击选择"),
    "top_k": Words("Labels to show", "显示的类别数"),
    "version": Words("Model version", "模型版本"),
    "examples": Words("Examples", "示例"),
    # the answer
    "answer.empty": Words("The answer appears here.", "结果将显示在此处。"),
    "answer.certain": Words("Almost certainly {first}", "几乎可以肯定是{first}"),
    "answer.probable": Words("Probably {first}", "很可能是{first}"),
    "answer.perhaps": Words("Perhaps {first}", "也许是{first}"),
    "answer.unsure": Words("Hard to tell; most like {first}", "难以判断，最像{first}"),
    "answer.possible": Words("; {others} is possible", "；也可能是{others}"),
    "answer.or": Words(" or ", "或"),
    "answer.stop": Words(".", "。"),
    "answer.none": Words("Probably none of the classes.", "很可能不属于任何类别。"),
    "answer.none_why": Words(
        "This photo does not look like what the model was trained on. It knows {count} classes and must name one of them; do not rely on the bars below.",
        "这张照片与模型训练时见过的图像不相似。模型只认识 {count} 个类别，必须从中选一个；请不要依赖下面的结果。",
    ),
    "answer.cannot_tell": Words(
        "This version cannot tell photos of other things apart.", "此版本无法辨认不属于任何类别的照片。"
    ),
    "answer.calibrated": Words("Confidence is calibrated.", "置信度经过校准。"),
    "answer.hardly_calibrated": Words(
        "Confidence was calibrated on {count} images only.", "置信度仅用 {count} 张图像校准。"
    ),
    "answer.miscalibrated": Words(
        "On {count} test images, confidence was off by {error} on average.",
        "在 {count} 张测试图像上，置信度平均偏差 {error}。",
    ),
    "answer.uncalibrated": Words("Confidence is not calibrated.", "置信度未经校准。"),
    "answer.seen": Words("What the model saw: {size} pixels", "模型看到的图像：{size} 像素"),
    "answer.version": Words("{name}, version {number}", "{name}，版本 {number}"),
    "answer.took": Words("{ms} ms in the model", "模型用时 {ms} 毫秒"),
    "answer.kept": Words("answered before", "此前已有结果"),
    "why": Words("Why {name}?", "为何是{name}？"),
    "why.heat": Words("The warmer, the more this part speaks for “{name}”.", "颜色越暖，该区域越支持“{name}”。"),
    "feedback.ask": Words("Is this right?", "结果正确吗？"),
    "feedback.ask_none": Words("Is it none of the classes?", "它确实不属于任何类别吗？"),
    "feedback.right": Words("Right", "正确"),
    "feedback.wrong": Words("Wrong, it is …", "不对，应该是…"),
    "feedback.thanks": Words("Thank you.", "谢谢反馈。"),
    "feedback.none": Words("none of these", "都不是"),
    "why.seconds": Words("{seconds} s", "{seconds} 秒"),
    "photo.no_image": Words(
        "{name} is not an image. Choose a JPEG, PNG, WebP, GIF, BMP, TIFF, HEIF or AVIF.",
        "{name} 不是图像。请选择 JPEG、PNG、WebP、GIF、BMP、TIFF、HEIF 或 AVIF。",
    ),
    # live
    "live.start": Words("Start live camera", "开启实时识别"),
    "live.stop": Words("Stop live camera", "停止实时识别"),
    "live.rate": Words("{rate} frames a second", "每秒 {rate} 帧"),
    "live.no_camera": Words(
        "The camera is not available: {reason}. Allow it in the browser, and open the page over https or on this computer.",
        "无法使用摄像头：{reason}。请在浏览器中允许使用，并通过 https 或在本机打开此页面。",
    ),
    # batch and compare
    "batch.intro": Words(
        "Choose many photos, or a zip of them. Each is sent on its own and nothing is stored; a bad file is a row with its error.",
        "选择多张照片，或包含照片的 zip 文件。每张单独发送，不会保存；无法识别的文件会在表格中注明错误。",
    ),
    "batch.limits": Words(
        "At most {files} files, {megabytes} MB in all, {each} MB each.",
        "最多 {files} 个文件，总计 {megabytes} MB，每个不超过 {each} MB。",
    ),
    "batch.drop": Words("Drop photos or a zip here", "将照片或 zip 拖到此处"),
    "batch.choose": Words("Choose files", "选择文件"),
    "batch.cancel": Words("Cancel", "取消"),
    "batch.done": Words("{done} of {all} done.", "已完成 {done}/{all}。"),
    "batch.failed": Words("{failed} with an error.", "{failed} 个出错。"),
    "batch.reading": Words("Reading {name} …", "正在读取 {name}…"),
    "batch.cancelled": Words("Cancelled: {done} of {all} done.", "已取消：完成 {done}/{all}。"),
    "batch.waiting": Words("The server asks to wait {seconds} s.", "服务器要求等待 {seconds} 秒。"),
    "batch.counts": Words("Photos by label", "各类别照片数"),
    "batch.none": Words("none of the classes", "不属于任何类别"),
    "batch.error": Words("error", "出错"),
    "batch.csv": Words("Download CSV", "下载 CSV"),
    "batch.json": Words("Download JSON", "下载 JSON"),
    "batch.table": Words("Results", "结果"),
    "batch.thumbnail": Words("Photo", "照片"),
    "batch.name": Words("File", "文件"),
    "batch.label": Words("Label", "类别"),
    "batch.score": Words("Score", "得分"),
    "batch.no_preview": Words("no preview", "无预览"),
    "batch.too_many": Words(
        "{name} was left out: a batch has at most {files} files.", "{name} 未处理：一批最多 {files} 个文件。"
    ),
    "batch.too_large": Words(
        "{name} was left out: a batch has at most {megabytes} MB.", "{name} 未处理：一批总计不超过 {megabytes} MB。"
    ),
    "batch.file_too_large": Words(
        "The file exceeds {each} MB. Send a smaller image.", "文件超过 {each} MB，请换一张较小的图像。"
    ),
    "batch.not_a_zip": Words(
        "{name} cannot be read as a zip. Pack it again and send the new file.",
        "无法将 {name} 作为 zip 读取，请重新打包后再试。",
    ),
    "batch.zip_ratio": Words(
        "This file of the zip unpacks to more than {ratio} times its packed size, as no photo does.",
        "zip 中的此文件解压后超过压缩大小的 {ratio} 倍，照片不会如此。",
    ),
    "batch.zip_method": Words(
        "This file of the zip is encrypted or packed in a way browsers cannot read.",
        "zip 中的此文件已加密，或压缩方式无法被浏览器读取。",
    ),
    "batch.empty": Words("There is no file in {name}.", "{name} 中没有文件。"),
    "compare.intro": Words(
        "Two versions on the same photos: what each says, and where they disagree.",
        "用两个版本识别相同的照片：各自的结果，以及不一致之处。",
    ),
    "compare.one": Words(
        "There is only version {number}. Export another one, and reload this page to compare them.",
        "目前只有版本 {number}。导出另一个版本并重新加载此页面后即可对比。",
    ),
    "compare.first": Words("First version", "第一个版本"),
    "compare.second": Words("Second version", "第二个版本"),
    "compare.version": Words("Version {number}", "版本 {number}"),
    "compare.agree": Words("agree", "一致"),
    "compare.disagree": Words("disagree", "不一致"),
    "compare.verdict": Words("Do they agree?", "是否一致？"),
    "compare.summary": Words("They disagree on {different} of {all}.", "{all} 张中有 {different} 张不一致。"),
    "compare.only": Words("Show only disagreements", "只显示不一致的"),
    # model
    "model.facts": Words("Facts", "概况"),
    "model.version": Words("Version", "版本"),
    "model.created": Words("Exported", "导出时间"),
    "model.size": Words("Size on disk", "磁盘占用"),
    "model.parameters": Words("Parameters", "参数量"),
    "model.input": Words("Input", "输入"),
    "model.preprocessing": Words("Preprocessing", "预处理"),
    "model.preprocessing_known": Words(
        "upright by EXIF, on white where transparent, squashed to the input size (bilinear), uint8",
        "按 EXIF 转正，透明处填白，以双线性插值压缩到输入尺寸，uint8",
    ),
    "model.data": Words("Training data", "训练数据"),
    "model.data_images": Words("{train} images to train, {test} to test", "训练图像 {train} 张，测试图像 {test} 张"),
    "model.seconds": Words("Time to train", "训练用时"),
    "model.seconds_value": Words("{seconds} s", "{seconds} 秒"),
    "model.accuracy": Words("Test accuracy", "测试准确率"),
    "model.accuracy_of": Words("{accuracy} of {images} images", "{accuracy}（{images} 张图像）"),
    "model.interval": Words("95 % interval {low} to {high}", "95% 区间 {low} 至 {high}"),
    "model.validation": Words("Validation accuracy", "验证准确率"),
    "model.top_k": Words("Among the first {k}", "前 {k} 名命中率"),
    "model.loss": Words("Test loss", "测试损失"),
    "model.confidence": Words("Confidence", "置信度"),
    "model.temperature": Words(
        "temperature {temperature}, fitted on {count} held-out images", "温度 {temperature}，由 {count} 张留出图像拟合"
    ),
    "model.ece": Words("Calibration error (ECE)", "校准误差（ECE）"),
    "model.per_class": Words("Accuracy by class", "各类别准确率"),
    "model.confusion": Words("Confusion matrix", "混淆矩阵"),
    "model.confusion_help": Words(
        "Rows: the true class. Columns: what the model said. Shares of the row, in percent.",
        "行：真实类别；列：模型的回答。数值为该行的百分比。",
    ),
    "model.confusion_corner": Words("true class", "真实类别"),
    "model.reliability": Words("Reliability", "可靠性"),
    "model.reliability_help": Words(
        "Of answers with a given confidence, this share was right. On the diagonal, confidence is honest.",
        "在给定置信度的回答中，实际正确的比例。落在对角线上表示置信度可信。",
    ),
    "model.axis_confidence": Words("confidence", "置信度"),
    "model.axis_accuracy": Words("share that was right", "实际正确率"),
    "model.bin": Words(
        "{low} to {high}: {images} images, {accuracy} right", "{low} 至 {high}：{images} 张，正确率 {accuracy}"
    ),
    "model.curves": Words("Training", "训练过程"),
    "model.curve_accuracy": Words("Accuracy", "准确率"),
    "model.curve_loss": Words("Loss", "损失"),
    "model.series_train": Words("training", "训练"),
    "model.series_validation": Words("validation", "验证"),
    "model.epoch": Words("epoch", "轮次"),
    "model.signatures": Words("Signatures", "签名"),
    "model.signature": Words("Signature", "签名"),
    "model.inputs": Words("Takes", "输入"),
    "model.outputs": Words("Gives", "输出"),
    "model.libraries": Words("Made with", "制作环境"),
    "model.missing_test": Words(
        "This version’s manifest has no measurements by class, confusion matrix or reliability: it was exported before they were kept.",
        "此版本的清单中没有各类别测量、混淆矩阵和可靠性数据：它导出时尚未记录这些内容。",
    ),
    "model.missing_history": Words(
        "This version’s manifest has no training curves: it was exported before they were kept.",
        "此版本的清单中没有训练曲线：它导出时尚未记录这些内容。",
    ),
    # code
    "code.intro": Words(
        "Each snippet runs as it is, beside a file photo.jpg. All parameters are described at",
        "以下代码可直接运行，只需同目录下有 photo.jpg。全部参数说明见",
    ),
    "code.copy": Words("Copy", "复制"),
    "code.copied": Words("Copied", "已复制"),
    "code.curl": Words("Shell: curl", "命令行：curl"),
    "code.python_client": Words("Python: gradio_client", "Python：gradio_client"),
    "code.python_requests": Words("Python: requests", "Python：requests"),
    "code.javascript": Words("JavaScript: @gradio/client", "JavaScript：@gradio/client"),
    "code.mcp": Words("MCP configuration", "MCP 配置"),
    "code.mcp_off": Words(
        "This server does not offer MCP; its operator can switch it on.", "此服务器未开启 MCP，可由运营者开启。"
    ),
    # errors, by their code; English says what came, in the error's own sentence
    "error": Words("{details}", "{sentence}（{details}）"),
    "error.unreachable": Words(
        "The server does not answer. Check the connection and try again.", "服务器没有响应，请检查网络连接后重试。"
    ),
    "error.internal_error": Words("", "服务器内部出错，请将请求编号告知运营者"),
    "error.bad_request": Words("", "请求格式不正确"),
    "error.missing_image": Words("", "没有收到图像"),
    "error.not_signed_in": Words("", "需要登录"),
    "error.invalid_credentials": Words("", "密钥或令牌无效"),
    "error.sign_in_failed": Words("", "登录失败"),
    "error.missing_scope": Words("", "没有执行此操作的权限"),
    "error.sign_in_unavailable": Words("", "登录服务暂不可用，请稍后重试"),
    "error.not_found": Words("", "此地址没有内容"),
    "error.method_not_allowed": Words("", "此地址不支持该方法"),
    "error.call_failed": Words("", "调用失败"),
    "error.bad_parameter": Words("", "参数不正确"),
    "error.too_large": Words("", "内容过大"),
    "error.body_too_large": Words("", "文件过大，请换一张较小的图像"),
    "error.batch_too_large": Words("", "批量文件过多或过大"),
    "error.unreadable_archive": Words("", "压缩包无法读取"),
    "error.image_too_large": Words("", "图像像素过多，请缩小后再试"),
    "error.unsupported_image": Words("", "文件内容不是受支持的图像格式"),
    "error.unreadable_image": Words("", "图像无法解码，可能已损坏或不完整"),
    "error.request_not_found": Words("", "找不到您的这条识别记录，可能已过期"),
    "error.records_unavailable": Words("", "反馈暂时无法保存，请稍后重试"),
    "error.version_not_found": Words("", "没有这个模型版本"),
    "error.version_unusable": Words("", "此模型版本不可用"),
    "error.label_not_found": Words("", "没有这一版本标签"),
    "error.routing_changed": Words("", "他人同时更改了版本设置，请查看后重试"),
    "error.nothing_to_roll_back": Words("", "没有可以回退到的版本"),
    "error.registry_read_only": Words("", "模型目录为只读，无法更改"),
    "error.model_server_unavailable": Words("", "模型服务器没有响应，请稍后重试"),
    "error.not_ready": Words("", "模型正在加载，请几秒后重试"),
    "error.rate_limited": Words("", "请求过于频繁，请稍后重试"),
    "error.overloaded": Words("", "服务器繁忙，请稍后重试"),
    "error.waited_too_long": Words("", "等待超时，请稍后重试"),
    "error.caller_left": Words("", "连接已断开"),
    "error.worker_gone": Words("", "处理此页面的进程已退出，请重新加载页面"),
    "common.complete": Words("Complete", "完成"),  # Gradio's, which its Chinese lacks
    # CIFAR-10's classes; others are shown as they are named
    "class.airplane": Words("airplane", "飞机"),
    "class.automobile": Words("automobile", "汽车"),
    "class.bird": Words("bird", "鸟"),
    "class.cat": Words("cat", "猫"),
    "class.deer": Words("deer", "鹿"),
    "class.dog": Words("dog", "狗"),
    "class.frog": Words("frog", "青蛙"),
    "class.horse": Words("horse", "马"),
    "class.ship": Words("ship", "船"),
    "class.truck": Words("truck", "卡车"),
}


TEXTS |= {key: Words(*text) for key, text in EXPERIMENT.items()}


def words(key: str, **values: object) -> Words:
    """A text with its gaps filled; a value that is `Words` goes in by language."""
    return Words(
        *(
            template.format_map(
                {name: value[at] if isinstance(value, Words) else value for name, value in values.items()}
            )
            for at, template in enumerate(TEXTS[key])
        )
    )


def class_name(name: str) -> Words:
    """A class in both languages."""
    return TEXTS.get(f"class.{name}", Words(name, name))


def with_article(name: str) -> Words:
    """The same with an English article: `an airplane`."""
    english, chinese = class_name(name)
    return Words(f"{'an' if english[:1].lower() in 'aeiou' else 'a'} {english}", chinese)


def joined(parts: list[Words], *, en: str = ", ", zh: str = "、") -> Words:
    """A list in words."""
    return Words(en.join(part.en for part in parts), zh.join(part.zh for part in parts))


def error_words(error: CifarError) -> Words:
    """An error's own sentence; in Chinese after what its code means."""
    return words("error", details=str(error), sentence=TEXTS[f"error.{error.code}"].zh)


def spans(text: Words) -> str:
    """HTML that shows the text in the page's language."""
    if text.en == text.zh:
        return html.escape(text.en)
    return "".join(
        f'<span class="{field}" lang="{LANGUAGES[field]}">{html.escape(said)}</span>'
        for field, said in text._asdict().items()
    )


def say(key: str, **values: object) -> str:
    """HTML of a text."""
    return spans(words(key, **values))

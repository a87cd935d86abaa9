"""Words of docs/results.md: comments below the tables, and the present names of methods and sentences in the recorded files."""

# methods, as the recorded files name them -> as the page does
METHODS = {
    "inverse, from scratch": "ours, from scratch",
    "inverse, from trained": "ours, from a trained network",
    "lesion scores, fine-tuned": "deletion by ablation scores, fine-tuned",
    "smallest responses, fine-tuned": "deletion of the smallest responses, fine-tuned",
    "the shape it found, from scratch": "the shape that ours found, from scratch",
    "shallower, trained as long": "shallower network, trained as long",
    "shallower, and exits": "ghost of the shallower network, exits alone",
    "exits trained with the network": "trained with exits",
    "exits trained with the network, and used": "ghost of the network trained with exits",
    "shrunk, and exits": "ghost of the shrunk network, exits alone",
    "lesion profile, no training": "the same blocks skipped for all inputs, by ablation profile",
    "ghost, in the time of the shallower": "ghost, in the time of the shallower network",
}

# sentences of recorded outcomes -> as the experiments say them now
SENTENCES = {
    "a deeper residual network has not.": "a deeper residual network does not.",
    "In a run this short the deeper residual network, too, is still on its way.": "In so short a run the deeper residual network has not "
    "converged either.",
    "The deeper plain network is worse on the images it was trained on, not only on others: it underfits.": "The deeper plain network is "
    "worse on the training images too: it underfits.",
    "Overfitting would be a low first and a high second figure.": "Overfitting would mean a low training error and a high test error.",
    "Where neither network is near its best yet, little can be said of either.": "Neither network has converged, so the comparison says "
    "little.",
    "0 stands for a network whose signal, or gradient, is nothing at all or not finite.": "0 stands for a signal or gradient that is zero "
    "or not finite.",
    "trained from scratch it ends at": "trained from scratch it has",
    "Residual networks beat the plain one of equal size by far;": "Residual networks are far better than the plain one of equal size;",
    "At this depth, on data this easy, the plain network trains well too, so shortcuts of any kind have little to win.": "At this depth "
    "and on such easy data the plain network trains well too, so shortcuts can improve little.",
    "train well either way.": "layers train well in both forms.",
    "So short a schedule ends before the deeper network has caught up.": "The schedule is too short for the deeper network to converge.",
    "That is within what the seeds differ by: easy data and a short schedule leave depth little to give.": "The difference is within the "
    "spread of the seeds: on easy data and with a short schedule, depth improves little.",
    "Too much depth overfits, and can be answered": "Too much depth overfits, and regularisation helps",
    "so there is no overfitting to answer, and leaving features or blocks out costs steps that it does not have.": "so there is no "
    "overfitting to reduce, and dropping features or blocks slows its training further.",
    "The +1 carries the gradient": "Shortcuts carry the gradient",
    "The gradient at any block is what arrives at the last one, plus what the branches add: it cannot vanish by depth.": "The gradient at "
    "any block is that of the last block plus the contributions of the branches, so it does not vanish with depth.",
    "% of the gradient's size comes by the shortcut at a site of the trained": "% of the gradient's norm comes through the shortcut at a "
    "site of the trained",
    "the weakest site still gets": "at the weakest site this part is",
    " that way. Autograd's split agrees": ". The split by autograd agrees",
    "share by the shortcut": "share through the shortcut",
    "against a finite difference": "difference from a finite difference",
    "Networks of different depth together": "Ensembles of networks of different depth",
    "the data are too easy, or the run too short, for depth to pay.": "the data are too easy or the run is too short for depth to help.",
    "Where the plain half holds and the residual half does not,": "If only the part about residual networks fails,",
    "Every residual network is far ahead of a plain one that does not train; among them, on few data, the smaller ones lead.": "All "
    "residual networks are far better than a plain one that does not train; on few data, the smaller ones are better.",
    "knows its images at that size only, the more so where an image is one object that fills the frame.": "is accurate at that size only, "
    "above all where one object fills the image.",
    "exits trained with it, over HTTP": "trained with early exits, served over HTTP",
}

NOTES = {
    "control": (
        "The aim is a rank correlation above 0.9, and each seed reaches it. Where the receptive field does not reach both marks, an exit "
        "is right about half of the time; one that counts marks of one kind can be right on three of the four pairs of bits, but not "
        "with confidence. The rate was lowered from 0.1, at which one seed of three missed the aim (0.92, 0.97 and 0.34 after as many "
        "epochs) because its exits erred on inputs within their reach; the choice was made on seeds 1 and 2, so seeds 0 and 3 are its test."
    ),
    "ablation": (
        "`muon-cifar` as it is has a rate of 0.1, which was chosen by the validation error of these rows; before, it was 0.2. Rows are "
        "sorted by the validation error. With two epochs, an image is seen twice, so crops and flips cost more than they give, and with "
        "five epochs still (two seeds). More epochs were not measured, so the recipe keeps them. Differences of less "
        "than about half a point are within the spread. Progressive resolution also saves time, which is not counted here."
    ),
    "engines-avx512-bf16": (
        "The aim is at least 1.0 times the best rival of equal precision. It is reached within the spread at batch 32, except in "
        "float32 (0.98), and missed at batch 1 by 2 to 8 %. In float32, `optimize` chose ONNX Runtime in its 30 seconds of "
        "measuring, where OpenVINO is as fast or faster in this table: the noise of a short measurement limits the choice. int8 is "
        "1.9 times as fast as bf16 with exact answers at both batches; with random weights its error means nothing."
    ),
    "engines-amx": (
        "The aim is at least 1.0 times the best rival of equal precision. On this virtual machine the rates change by a factor "
        "of two within minutes, and the same turns decide which rival is the fastest, which favours the rival. A second process"
        " of OpenVINO tuned, judged by the same rule, is 0.93 times as fast as the fastest rival in float32, 1.00 in bf16 and "
        "1.00 in int8 (ratios of the medians in the second table, median over the 15 rows); ours are 0.98, 0.97 and 0.96. Ours "
        "cannot be told from the rivals here, so the aim is neither shown nor refuted. ResNet-50 and ResNet-56 at batch 32 were "
        "measured with the engine openvino-streams and with a rival that sends single images to OpenVINO's queue of asynchronous "
        "requests: ResNet-50 in bf16 is 1.04 times as fast as the fastest rival by the ratios of the turns and 1.20 times by the "
        "medians, in int8 1.04 and 1.08 times; ResNet-56 is about as fast. The other rows are older than "
        "this engine. The two lowest ratios are of int8: ResNet-18 at batch 1 (0.64, its two copies 0.81) and the shrunk "
        "ResNet-50 at batch 32 (0.78 in five turns). The "
        "compiled layers of the latter are those of the rival, and in nine turns of these two alone it took 1.00 times as long."
        " Exact answers, which no rival gives, compute close calls once more in float32. With random weights, close calls are 0"
        " to 100 % of the inputs: all of ResNet-101's and 69 % of the ghosted ResNet-50's, which therefore take three to four "
        "times as long, and 12 % of ViT-S's and the shrunk ResNet-50's; at batch 1 a single image is measured, and the shrunk "
        "network's is a close call. Of the trained ResNet-18 (fast-cifar, 4 epochs of cifar10-jpeg at 96 pixels) they are 1 %. "
        "It also shows the aim of int8: 1.9 times bf16 at no more than 0.3 points. int8 is 1.94 times as fast as the bf16 that "
        "`optimize` chose, and 1.74 times (ratio of medians) as fast as the faster one, so the speed is not shown to be "
        "reached; the error is: 22.36 % before and after on 5,000 validation images, 22.74 and 22.67 % on 10,000 test images."
    ),
    "training-resnet20-cifar-avx512-bf16": (
        "One group of processes for each candidate. The aim, 0.92 of the rate of the convolutions alone, is missed: fused and "
        "compiled steps reach 0.81 of it. They are ahead of the tuned peer in each turn, and 2.4 times as fast as the peer as its "
        "users run it."
    ),
    "training-resnet20-cifar-amx": (
        "One group of processes for each candidate, on one thread. The aims with AMX are 0.92 of the rate of the convolutions alone "
        "and 1.5 times the tuned peer: 0.61 and 1.19 are reached. What is left is memory traffic, see [speed.md](speed.md)."
    ),
    "language-throughput": (
        "The aim is 1.2 times the loop tuned with compile and bf16: by the medians it is 1.27. Of the fastest peer, which is the plain "
        "loop in float32, it is 1.18."
    ),
    "language-generation": "The aim is 1.2 times Hugging Face's `generate` on the same weights: reached at both batch sizes.",
    "language-speculation": (
        "The aim of 1.3 times is missed. The network was not trained to be cut, so its own blocks draft too few right tokens: half of the "
        "depth would have to agree on 87 % of the tokens, and agrees on 55 %. See [log.md](log.md)."
    ),
    "levers": (
        "One thread. The three seeds are three ways to shrink one trained network; a ghost's exits are fitted with a fixed seed, so ghosts "
        "of the whole network differ by the setting that the measured time chose, and for two seeds that is the whole network itself. "
        "For the third it costs 0.8 points of test error. While this was timed the machine slowed down by a factor of two to three and its "
        "rates changed within a turn, so ratios are uncertain by as much as their ranges say, and rows that are within a quarter of each "
        "other are not told apart. Most of the speed comes from the engine, which costs no error: 9 times at batch 1 and 8 at batch 32. "
        "int8 is 1.1 to 1.2 times as fast as bf16, where the aim is 1.9: with AMX bf16 is fast, and the depthwise convolutions of this "
        "network wait for memory. On the engine no ghost is seen to be faster than the network that it is made of: its exit heads and the "
        "calls between segments cost about as much as the blocks that they save. All three levers together are not faster than "
        "shrinking and int8. An earlier measurement (one seed, a calmer hour of such a machine) had 11.1 times at batch 32 for the whole "
        "network on the engine, 15.6 for shrunk and int8 and 16.7 for all three, whose ghost was the shrunk network itself."
    ),
    "detection-bccd": (
        "Each training had ten minutes of one core, validation included (560 to 645 s; the number of epochs of ours is set "
        "beforehand, by the time of a few steps). The aims are 70 % mAP@.5 within sixty minutes of two cores, and at least "
        "torchvision's accuracy in the same time: both are reached, the second for each seed, by 1.2 to 3.6 points. "
        "Torchvision's detector has its builder's widths, so it sees the images a third as often; optimizer, averaged weights, "
        "augmentation, image size and precision are ours in both. Residual learning does not pay at 18 layers, as in the paper, "
        "where plain and residual networks of 18 layers have 27.9 % error on ImageNet: the plain one is ahead by less than the "
        "spread. Pretrained features of EfficientNet-Lite0 make up for half of the epochs: after ten epochs that detector is "
        "where ResNet-18 is after twenty, in the same time. "
        "The global context of the paper's table 9 brings 1.0 ± 0.7 points of mAP and 0.5 ± 1.0 of mAP@.5 (seed by seed)."
    ),
    "memory-resnet1202": (
        "The aim for `bf16-fused` is 1.5 GiB at no more than 1.35 times the time: the memory is kept, and the time is at the limit "
        "(1.355 by the clock, 1.357 by what the processor computed)."
    ),
    "language-shrink": (
        "The aim, a quarter of the parts gone at 0.02 nats or less, is reached by every way on the mean. Ours is not ahead: dropping the "
        "last three layers costs least, and of the other two rankings the difference to ours is within the spread of three seeds. With "
        "60 steps instead of 320 (first seed) the rises were 0.038 for ours, 0.034 by lesion scores, 0.051 by block influence, "
        "0.016 for the last layers and 0.025 for the whole network trained on. The target `loss=+0.02` in one gradual run removes nothing, "
        "because it judges parts before the others have adapted; the network learns from its own answers meanwhile and gains 0.011. "
        "`--removal at-once` judges after training and was added for this reason; it is not in this table."
    ),
    "serving-rivals": (
        "For one client the aim is 1.5 times decoding and the call: reached. For 32 clients it is 85 % of what the engine gives on the "
        "same images: missed by a point on photographs, and by nine where clients send resized images. An earlier record said 54 %, "
        "because the engine's rate was measured on noise, which has no close calls. Tuned LitServe gives 3 % more answers to 32 clients, "
        "and tuned BentoML answers one client 12 % sooner; without their tuning both are about half as fast as ours."
    ),
    "families-gpt2": (
        "Depth helps here: the whole network is best. From scratch, ours has the lowest mean error of three layers. It is ahead "
        "of the threshold for each seed, and ahead of the shallow network by no more than the spread of the seeds. With two "
        "more seeds for these three (test errors 55.71 and 55.06 % for ours, 55.52 and 55.40 % for the shallow network, 55.96 "
        "and 55.67 % for the threshold) the means of five are 55.36, 55.44 and 55.69 %. Networks that start from a trained one "
        "are ahead of a shallow one trained from scratch for as many further epochs (half of all) by 2.3 to 3.2 points, and "
        "behind one that has all epochs. Among these, ours has the lowest mean error, within the spread of the seeds. The norm "
        "scale, cut at half of the run, was not tuned for a network whose norms precede its branches."
    ),
    "families-resnet34": (
        "One seed. One of the 945 test images is 0.11 points, so these networks cannot be distinguished. Errors are compared "
        "with the whole network trained in two schedules. In ours from a trained network, blocks were constrained until half "
        "of its run; the default is now a fifth."
    ),
    "families-vit": (
        "Errors are compared with the whole network trained in two schedules. In ours from a trained network, blocks were constrained "
        "until half of its run; the default is now a fifth."
    ),
    "ghost-resnet56-16px-amx": (
        "The exit heads of a ghost are also trained on labels, on images without augmentation. After so short a training, their "
        "mean with the network's answer is more accurate than the network, so errors fall. Settings were allowed to raise the "
        "error by 0.2 points and had to be confirmed on 8,000 images, with 90 % confidence. The ghost in the time of the "
        "shallower network was chosen by its error on 1,000 images, within that time at each batch size. The rows ghost, exits "
        "alone, gates alone, lesion profile and random skipping, and the budgets, were measured before times were medians of "
        "the turns' ratios: they are ratios of the fastest turns. Networks trained with exits were not measured at this scale."
    ),
    "ghost-resnet56-16px": (
        "These networks are not those of the next table; they were trained in float32. Every setting was chosen on 2,000 "
        "validation images, with a limit of 0.2 points above the network that it is made of, and confirmed on 8,000 further "
        "ones with 90 % confidence. Only settings with an estimate well below the limit pass, which is why the errors fall. The "
        "exit heads were also trained on labels, on images without augmentation, and after so short a training their mean with "
        "the network's answer is more accurate than the network. The shallower network is as accurate as the ghost of the whole "
        "one in the same time at batch 1, and faster at 32 and 256. Its own ghost is more accurate, in a fifth less of the "
        "time, at batch 1 and 256. At 32 its ghost is the shallower network itself, and for one seed at batch 1 too, so the "
        "difference there is noise: the same network measured 53 and 59 %. Gates alone are the whole network everywhere but in "
        "one place, where a setting that had been measured as faster took 115 % when timed again. Directly afterwards, two "
        "copies of the whole network came to 114 % of each other at batch 1, so a time here may be off by as much. Training "
        "with exits improves the network itself by 0.8 points, and its ghost may be 0.2 points worse than that. The lesion "
        "profile, random skipping and budgets were not measured again: the next table has them, from before exit heads used "
        "channels-last."
    ),
    "ghost-resnet56-32px": (
        "One seed. Settings were allowed to raise the error by 0.2 points and had to be confirmed on 8,000 images, with 90 % "
        "confidence; exit heads were trained on 20,000. The limit of 'shrunk, and exits' is 0.2 points above the shrunk "
        "network, not the whole one. Depth does not help in eight epochs: the shallower network is no worse than the whole one, "
        "and a ghost in its time is two to four points behind. The blocks of the shrunk network were constrained between a fifth and "
        "half of its run."
    ),
    "ghosts-resnet34": (
        "Blood cells of three kinds. Most inputs are easy: all but one in a thousand exit early, at a confidence of 0.55, after a "
        "fifth of the blocks. The rise was confirmed on the further validation images: 3 right answers lost and 6 won, at most "
        "0.18 points with 90 % confidence. On the test split, 4 of 945 images more are right. Exit heads were trained on 250 "
        "training images."
    ),
    "ghosts-vit": (
        "Settings were chosen at batch 32. Every seed has one that keeps half a point with 90 % confidence. That of the third "
        "took 95 % of the time, and was not faster in all but a quarter of the turns. Its ghost is therefore the network "
        "itself, to the bit, and the deviation of its times from 100 % is measurement noise. Gates save nothing here: at batch "
        "32 they took as long as the network, or longer."
    ),
    "shrink-resnet110-16px": (
        "Twelve epochs are far too few for 110 layers: the shallow network is 4.5 points better than what remains of the deep "
        "one. Two thirds of the blocks were removed without raising the error above the whole network's. Training seconds were "
        "taken while other work shared the machine."
    ),
    "shrink-resnet56-16px-float32": (
        "The same three seeds in float32, on another machine, with the same schedule: ours is 0.22 points above the whole network, "
        "and the shallow network 0.93 below it. Over the six runs of both tables, the whole network has 30.56 ± 0.75 %, ours "
        "30.52 ± 0.76 % and the shallow one 30.04 ± 1.18 %. Depth does not help in so short a run, and the lead of ours in the "
        "table above was due to the seeds. Training seconds were taken while other work shared the machine."
    ),
    "shrink-resnet56-16px": (
        "At 15 blocks ours has the lowest mean error, but by less than the spread of the seeds; at 9 blocks the shallow network "
        "has. The methods from scratch cannot be distinguished, except for the norm scale, which is behind at 9 blocks. From "
        "scratch, ours and the threshold both turned blocks into identities between a tenth and three tenths of the run. Both were also "
        "tried "
        "between a fifth and half (30.28 ± 0.11 and 30.19 ± 0.25 % then, at 15 blocks), and for ours the earlier one was chosen "
        "by the validation error over the three seeds (30.04 against 30.24 %). The norm scale was cut at half of the run. Half "
        "of 24 epochs are too few to train a network, and half too few to recover: all rows that start from a trained one are 6 "
        "to 7 points above. They were not run at 9 blocks. Training seconds were taken while other work shared the machine."
    ),
    "shrink-resnet56-32px": (
        "One seed. The blocks of the shrunk network were constrained between a fifth and half of its run. In eight epochs depth does "
        "not help: the shallow network is no worse than the whole one. Training seconds were taken while other work shared the "
        "machine."
    ),
}

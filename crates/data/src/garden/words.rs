//! The names and words of the world, each in English and Chinese. Written for Loam, not taken from any text.

/// A word in both languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Term {
    /// English, without an article; names are capitalised.
    pub en: &'static str,
    /// Chinese.
    pub zh: &'static str,
}

const fn term(en: &'static str, zh: &'static str) -> Term {
    Term { en, zh }
}

/// First names and whether the person is spoken of as `she`.
pub const PEOPLE: [(Term, bool); 20] = [
    (term("Mia", "米娅"), true),
    (term("Tom", "阿汤"), false),
    (term("Anna", "安娜"), true),
    (term("Ben", "阿本"), false),
    (term("Lily", "莉莉"), true),
    (term("Sam", "小山"), false),
    (term("Ella", "艾拉"), true),
    (term("Max", "马克"), false),
    (term("Nora", "诺拉"), true),
    (term("Leo", "里奥"), false),
    (term("Ruby", "露比"), true),
    (term("Finn", "芬恩"), false),
    (term("Ivy", "小藤"), true),
    (term("Jack", "杰克"), false),
    (term("Rosa", "罗莎"), true),
    (term("Hugo", "雨果"), false),
    (term("Vera", "薇拉"), true),
    (term("Otto", "奥托"), false),
    (term("Clara", "可可"), true),
    (term("Felix", "小飞"), false),
];

/// Buildings: people live in them and things are kept in them.
pub const PLACES: [Term; 16] = [
    term("mill", "磨坊"),
    term("lighthouse", "灯塔"),
    term("farmhouse", "农舍"),
    term("castle", "城堡"),
    term("inn", "客栈"),
    term("cottage", "小屋"),
    term("tower", "塔楼"),
    term("cabin", "木屋"),
    term("bakery", "面包店"),
    term("library", "图书馆"),
    term("school", "学校"),
    term("chapel", "教堂"),
    term("boathouse", "船屋"),
    term("barn", "谷仓"),
    term("greenhouse", "温室"),
    term("treehouse", "树屋"),
];

/// What a building stands near.
pub const LANDMARKS: [Term; 8] = [
    term("river", "小河"),
    term("lake", "湖"),
    term("forest", "森林"),
    term("hill", "山"),
    term("bridge", "桥"),
    term("market", "集市"),
    term("beach", "海滩"),
    term("well", "水井"),
];

/// Colours of things, doors and favourites.
pub const COLOURS: [Term; 9] = [
    term("red", "红色"),
    term("blue", "蓝色"),
    term("green", "绿色"),
    term("yellow", "黄色"),
    term("white", "白色"),
    term("black", "黑色"),
    term("brown", "棕色"),
    term("pink", "粉色"),
    term("purple", "紫色"),
];

/// What people do for work; each takes the article "a".
pub const JOBS: [Term; 14] = [
    term("baker", "面包师"),
    term("teacher", "老师"),
    term("doctor", "医生"),
    term("farmer", "农夫"),
    term("painter", "画家"),
    term("sailor", "水手"),
    term("tailor", "裁缝"),
    term("gardener", "园丁"),
    term("singer", "歌手"),
    term("driver", "司机"),
    term("cook", "厨师"),
    term("builder", "建筑工"),
    term("writer", "作家"),
    term("pilot", "飞行员"),
];

/// What people and animals eat.
pub const FOODS: [Term; 14] = [
    term("bread", "面包"),
    term("soup", "汤"),
    term("rice", "米饭"),
    term("cheese", "奶酪"),
    term("noodles", "面条"),
    term("cake", "蛋糕"),
    term("honey", "蜂蜜"),
    term("pears", "梨"),
    term("eggs", "鸡蛋"),
    term("fish", "鱼"),
    term("pancakes", "煎饼"),
    term("plums", "李子"),
    term("beans", "豆子"),
    term("corn", "玉米"),
];

/// Things with an owner, a colour and a place where they are kept.
pub const THINGS: [Term; 18] = [
    term("kite", "风筝"),
    term("lamp", "台灯"),
    term("drum", "鼓"),
    term("hat", "帽子"),
    term("coat", "大衣"),
    term("book", "书"),
    term("clock", "钟"),
    term("bell", "铃铛"),
    term("cup", "杯子"),
    term("box", "箱子"),
    term("ball", "球"),
    term("basket", "篮子"),
    term("bike", "自行车"),
    term("flute", "笛子"),
    term("chair", "椅子"),
    term("ladder", "梯子"),
    term("map", "地图"),
    term("mirror", "镜子"),
];

/// The names of the animals.
pub const PETS: [Term; 10] = [
    term("Pip", "皮皮"),
    term("Dot", "点点"),
    term("Biscuit", "饼干"),
    term("Shadow", "影子"),
    term("Pepper", "胡椒"),
    term("Clover", "三叶"),
    term("Moss", "苔苔"),
    term("Pebble", "石子"),
    term("Sunny", "阳阳"),
    term("Button", "扣扣"),
];

/// Kinds of animals; each takes the article "a".
pub const KINDS: [Term; 8] = [
    term("cat", "猫"),
    term("dog", "狗"),
    term("rabbit", "兔子"),
    term("hen", "母鸡"),
    term("duck", "鸭子"),
    term("goat", "山羊"),
    term("parrot", "鹦鹉"),
    term("turtle", "乌龟"),
];

/// Pairs of opposites, true both ways.
pub const OPPOSITES: [(Term, Term); 14] = [
    (term("hot", "热"), term("cold", "冷")),
    (term("big", "大"), term("small", "小")),
    (term("day", "白天"), term("night", "黑夜")),
    (term("up", "上"), term("down", "下")),
    (term("open", "开"), term("closed", "关")),
    (term("fast", "快"), term("slow", "慢")),
    (term("happy", "开心"), term("sad", "难过")),
    (term("old", "旧"), term("new", "新")),
    (term("full", "满"), term("empty", "空")),
    (term("long", "长"), term("short", "短")),
    (term("wet", "湿"), term("dry", "干")),
    (term("loud", "吵"), term("quiet", "静")),
    (term("light", "轻"), term("heavy", "重")),
    (term("near", "近"), term("far", "远")),
];

/// Words to repeat and to put in reverse order.
pub const TASK_WORDS: [&str; 24] = [
    "sun", "moon", "star", "rain", "snow", "wind", "tree", "leaf", "stone", "sand", "fire", "cloud", "apple", "bird",
    "door", "ship", "road", "song", "milk", "rose", "gold", "hand", "fox", "bear",
];

"""What an equation may mean: products without a sign, roundings, and the readings that keep a step from being wrong.

The lists are written by hand, in the wordings of models and people.
"""


from __future__ import annotations

from types import SimpleNamespace

import pytest

from prm_core.config import VerifierConfig
from prm_core.labeling.strategies.verifier import VerifierLabeler
from prm_core.maths.equations import find_equations
from prm_core.maths.symbolic import to_latex

RIGHT = [
    "2(3) = 6", "(2)(3) = 6", "2(3)(4) = 24", "(1)(3) + (-2)(-5) + (-4)(7) = -15", "2(3 + 4) - 1 = 13",
    r"3\sqrt{4} = 6", r"\sqrt{2}\sqrt{8} = 4", r"\sqrt{2}(3) = 3\sqrt{2}", r"2\sqrt{3}(4) = 8\sqrt{3}",
    r"\frac{1}{2}(6) = 3", r"\frac{1}{2}\cdot 6 = 3", r"\frac{1}{2}\sqrt{16} = 2",
    r"\left(\frac{1}{2}\right)^2 = \frac{1}{4}", r"4\pi(3) = 12\pi", r"2\pi \cdot 3 = 6\pi",
    r"(1)(\sqrt{3}) + (-2)(5) + (-4)(-1) = \sqrt{3} - 10 + 4 = \sqrt{3} - 6",
    r"3+2\sqrt{144} + 5(62) = 3 + 2(12) + 5(62)", "(2)3 = 6", "5!19! = 5! * 19!", "5!(24-5)! = 5!19!",
    "10*9*8*7*6*5*4*3*2*1=10!", "So there are 10*9*8*7*6*5*4*3*2*1=10! ways.",
    "So there are $10*9*8*7*6*5*4*3*2*1=10!$ ways to do it.", "5! = 120!", "5! = 120.", "3! + 4! = 30", "3 + 4 = 7!",
    "3 + 4 = 7! Great.", "Wow! 3 + 4 = 7!", "(5 - 2)! = 6", r"\binom{5}{2} = 10", r"\dbinom{5}{2} \cdot 2 = 20",
    r"\frac{7!}{5!} = 42", r"\frac{7!}{5!2!} = 21", r"2\frac{1}{2} + \frac{1}{2} = 3",
    r"-2\frac{1}{2} + 1 = -1\frac{1}{2}", "2½ + ½ = 3", "½ of 10 = 5", "2 1/2 + 1/2 = 3", "20 percent of 50 = 10",
    "20 per cent of 50 = 10", "3/4 of 80 = 60", "80 + 25% of 80 = 100", "25% of $80 = $20", r"\sqrt[3]{27} = 3",
    r"\sqrt[3]{-8} = -2", "8^{1/3} = 2", r"4^{\frac{1}{2}} = 2", r"\sqrt{50} = 5\sqrt{2}",
    r"\sqrt{12} + \sqrt{3} = 3\sqrt{3}", r"\frac{\sqrt{3}}{2} \cdot 2 = \sqrt{3}",
    r"\frac{1}{\sqrt{2}} = \frac{\sqrt{2}}{2}", r"\ln 1 + 2 = 2", "sqrt(16) + 1 = 5", "√(9 + 16) = 5",
    "17 = 3 * 5 + 2", "17 // 5 = 3", "10⁴ = 10,000", "3 × 10^8 * 2 = 6 × 10^8", "5 * 3 = 15 square feet",
    "The total is -3 + 5 = 2.", "So there is a total of 3 + 4 = 7 apples.", "$2^{10} = 1024$", "0.125 * 8 = 1",
    "3 T-shirts + 4 T-shirts = 7 T-shirts",
]
# Not one is false in every ordinary reading.
NOT_WRONG = [
    "3y-x-15=0", "2x-y+4=0", "$2x-y+4=0$", "The line is $3y-x-15=0$.", "$10z-z^2=6$", "7y-y^3=10", "2ab-cd+4 = 6",
    "2x/y + 4 = 0", r"Put $q=3$ into $bq^5=6!$, then $b=\frac{6!}{3^5}$.", "3abc + 1 = 2",
    r"\sqrt{50} = 7.07", r"\sqrt{50} = 7.1", r"\pi * 4 = 12.57", r"\pi \cdot 4 = 12.57", r"4\pi = 12.57",
    r"4\pi = 12.566", r"\pi * 4 = 12.56", r"\pi \times 5^2 = 78.5", "π * 10 = 31.4", r"\pi \cdot 49 = 154",
    r"\sqrt{2} = 1.41", r"\sqrt{2} = 1.414", r"\sqrt{2} + 1 = 2.41", r"\ln 2 = 0.69", r"\ln(10) = 2.3",
    r"\sqrt{97} = 9.8", r"10\sqrt{2} = 14.14", r"\sqrt{5000} = 71", "10/3 + 1 = 3.33 + 1",
    r"7\pi = 7 \cdot 3.14 = 21.99", r"\sqrt{3} \cdot 10 = 1.73 * 10 = 17.32", r"1/3 = 0.\overline{3}", "1/3 = 0.(3)",
    "1/3 = 0.333...", r"2/7 = 0.\overline{285714}", "89/3 = 29 with a remainder of 2", "89/3 = 29 with remainder 2",
    "89/3 = 29 remainder 2", "89/3 = 29 R 2", "89/3 = 29 R2", "89/3 = 29 r2", "89/3 = 29 r 2", "89/3 = 29 r. 2",
    "89/3 = 29 rem 2", "89/3 = 29, remainder 2", "89/3 = 29, with 2 left over.",
    "89/3 = 29, leaving a remainder of 2.", "89/3 = 29 and 2 are left over", "89/3 = 29 (remainder 2)",
    "89/3 = 29 (R2)", "89/3 = 29 + R2", "89 ÷ 3 = 29 remainder 2", "89 / 3 = 29 (with 2 left)",
    r"\frac{89}{3} = 29 \text{ remainder } 2", r"\frac{89}{3} = 29 \text{ R } 2", r"$89 \div 3 = 29$ R $2$",
    "Since 89 / 3 = 29, there are 2 left over.", "89 divided by 3 is 29: 89 / 3 = 29. The remainder is 2.",
    "They can make 89 / 3 = 29 whole teams, 2 students are left.", "89 / 3 = 29 full teams",
    "So he needs 89 / 3 = 30 boxes.", "89 / 3 = 30 (rounded up)", "89 / 3 = 30, rounding up",
    "89 = 3 * 29, remainder 2", "89 = 3 * 29 with 2 left over", "89 = 29 * 3 and 2 remain", "89 mod 3 = 2",
    "89 % 3 = 2", r"89 \bmod 3 = 2", r"89 \mod 3 = 2", r"89 \pmod 3 = 2", r"89 = 2 \pmod 3", r"89 + 2 = 1 \pmod{3}",
    "40 + 2 = 0 (mod 3)", "Working modulo 7, we get 10 * 10 = 2.", "10^3 = -1", "2^3 = 1", "12 + 3 = 3 o'clock",
    "9 + 8 = 5 pm", "11 am + 3 hours = 2 pm", "10:30 + 45 = 11:15",
    "10.30 + 0.45 = 11.15, so the train arrives at 11.15 am.", "0930 + 45 = 1015", "1130 + 45 = 1215 hours",
    "1.500 + 200 = 1.700", "1,5 + 2 = 3,5", "2,50 + 2,50 = 5", "2,500 * 2 = 5", "1.234 + 1.000 = 2.234",
    "0,125 * 8 = 1", "1.000.000 + 1 = 1.000.001", "1 hour - 20 minutes = 40 minutes", "$5 + 50 cents = $5.50",
    "$5 + 50 = $5.50", "100 * 0.75 = $0.75", "3 feet = 36 inches", "3 * 12 = 3 feet", "2 dozen = 24",
    "2 dozen + 3 = 27", "1.5 hours + 30 minutes = 2 hours", "60 + 80 = 2 hours 20 minutes",
    "63 / 12 = 5 feet 3 inches", "63 / 12 = 5 feet and 3 inches", "2 * 1.5 = 180 minutes", "1 - 1/3 = 40 minutes",
    "3 km + 500 m = 3.5 km", "3 * 1000 = 3 kilometers", "5 thousand * 3 = 15,000",
    "The factory makes 5 thousand a day, so 5 * 3 = 15,000.", "101 + 1 = 110", "1101 = 8 + 4 + 1 = 13 in binary",
    "101 + 1 = 110 in binary", "In base 8, 7 + 5 = 14.", "7_8 + 5_8 = 14_8", "|3 - 7| = 4", "|3 - 7| + 1 = 5",
    "1 + |3 - 7| = 5", r"\lvert 3 - 7 \rvert = 4", r"\left|3 - 7\right| = 4",
    r"\left| -3 \right| + \left| -4 \right| = 7", r"\lfloor 17/5 \rfloor = 3", "floor(17/5) = 3", "floor (17/5) = 3",
    "⌊17/5⌋ = 3", "gcd(12, 18) = 6", r"\gcd(12, 18) = 6", "lcm(4, 6) = 12", "5 choose 2 = 10", "C(5, 2) = 10",
    "5C2 = 10", "^5C_2 = 10", "P(5, 2) = 20", "log(100) = 2", r"\log_{10} 100 = 2", r"\log 100 + 1 = 3",
    "log 100 + 1 = 3", "log_2 8 + 1 = 4", r"\sin 30 = 0.5", "sin(30) + 1 = 1.5", r"\cos 60^\circ = \frac{1}{2}",
    r"\tan 45^\circ + 1 = 2", "350 + 20 = 10 degrees", "max(3, 4) + 1 = 5", "the square of 3 + 4 = 13",
    "square 3 + 4 = 13", "the average of 3 and 5 + 2 = 6", "The average: (3 + 5) / 2 = 4 points and 1/2",
    "half of 10 + 2 = 7", "twice 3 + 4 = 10", "double 3 + 4 = 10", "a third of 9 + 1 = 4", "negative 3 + 5 = 2",
    "minus 3 + 5 = 2", "3, 4, and 5 + 1 = 13", "6:2 + 1 = 4", "12 : 4 + 1 = 4", "0x10 + 1 = 0x11", "5 + 1 = 3 pairs",
    "4 + 2 = 3 groups of 2", "5 + 7 = 1 dozen", "4 + 3 = 3 and 4", "20% off $50 = $40", "$5 - 20% = $4",
    "80 + 25% = 100", "100 - 10% - 10% = 81", "3/3 - 2/3 = 1/3 of $150", "2/3 of the 90 = 60",
    r"\frac{1001}{7} = 143.", "Is 3 + 4 = 8?", "We check whether 3 + 4 = 8.", "3 + 4 = 8 is wrong.",
    "3 + 4 = 8. Wait, 3 + 4 = 7.", "Oops, 3 + 4 = 8 should be 7.", "Define a * b = a + 2b, then 3 * 4 = 11.",
    r"3 \star 4 = 11", "1 + 2 + ... + 100 = 5051", r"1 + 2 + \dots + 100 = 5051", r"1 + 2 + \cdots + 100 = 5051",
    r"\sqrt[3]{6^3+8^3} = \sqrt[3]{2^391}",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + \begin{pmatrix} 3 \\ 4 \end{pmatrix} = \begin{pmatrix} 4 \\ 7 \end{pmatrix}",  # noqa: E501
    r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix} = -3", r"6.02 \times 10^{23} \cdot 2 = 1.2 \times 10^{24}",
    "45/7=6 and 6*7=42, which leaves 45-42=3.", r"g(7) < \frac{1000}{3 \cdot 7} = 47", "1000/3 = 333",
    "i^2 + 1 = 1", "Monday + 3 days = Thursday", "17 ÷ 5 = 3 with 2 remaining.",
    "17 ÷ 5 equals 3 with remainder 2, so 17 ÷ 5 = 3.", "17 / 5 = 3 rem. 2", "17 / 5 = 3 Rem 2",
    "17 / 5 = 3 Remainder: 2", "17 / 5 = 3 remainder=2", "17 / 5 = 3 (r 2)", "17 / 5 = 3 [R2]",
    "17 / 5 = 3; remainder = 2", "17 / 5 = 3 ... 2", "17 / 5 = 3…2", "17/5=3...2", "17 : 5 = 3 remainder 2",
    "17 : 5 = 3 Rest 2", "17 / 5 = 3 2/5", r"17 / 5 = 3\frac{2}{5}", "17 / 5 = 3 and 2/5", "17 / 5 = 3 + 2/5",
    "17 / 5 = 3.4, so 3 full boxes", "17 / 5 = 3 boxes", "17 apples / 5 apples per box = 3 boxes",
    "17 / 5 = 4 boxes needed", "She needs 17 / 5 = 4 buses.", "100 / 8 = 12 full boxes and 4 cookies left.",
    "100/8 = 12, and 100 - 96 = 4 left", "The quotient is 17 / 5 = 3.", "The integer part: 17/5 = 3", "17 div 5 = 3",
    r"17 \div 5 = 3 \text{ R } 2", r"17 \div 5 = 3 \, R \, 2", r"17 \div 5 = 3R2",
    r"$17 = 5 \cdot 3$ with $2$ left over", r"$17 \equiv 2 \pmod 5$, so 3 * 17 = 1 in mod 5.",
    r"2^{10} = 1024 = 4 \pmod{10}", "7 * 8 = 56 = 1 (mod 5)", "7 + 8 = 15 = 3 mod 12", "5 + 5 = 3 in modulo 7",
    r"3^{100} = 1 \mod 4", "-7 mod 3 = 2", "int(17 / 5) = 3", "round(17 / 5) = 3", "17 // 5 = 3, 17 % 5 = 2",
    "17//5 = 3 and 17%5 = 2", "2.000 + 3.500 = 5.500", "12.345 + 1.000 = 13.345", "1.250,50 + 49,50 = 1.300",
    "€1.500 + €200 = €1.700", "1'000 + 500 = 1'500", "1 000 + 500 = 1 500", r"10\,000 + 5 = 10\,005", "0,5 * 4 = 2",
    "3,14 * 2 = 6,28", "8:15 + 45 min = 9:00", "8:15 + 0:45 = 9:00", "8.15 + 0.45 = 9.00 (time)",
    "10 + 4 = 2 (on a clock)", "It is 10 o'clock, 10 + 4 = 2, so 2 o'clock.", "10 PM + 3 hours = 1 AM",
    "10 p.m. + 3 = 1 a.m.", "23:00 + 2 = 1:00", "1 hour = 60 minutes, so 1 - 0.5 = 30 minutes",
    "1/2 hour + 15 minutes = 45 minutes", "1 h 20 min + 50 min = 2 h 10 min", "2 hours - 45 minutes = 75 minutes",
    "3 weeks + 2 days = 23 days", "3 * 7 + 2 = 23 days", "1 year - 2 months = 10 months", "5 ft + 6 in = 66 in",
    "5 feet 6 inches = 5 * 12 + 6 = 66 inches", "1 m - 20 cm = 80 cm", "2 kg + 500 g = 2.5 kg",
    "2 kg + 500 g = 2500 g", "3 quarters + 2 dimes = 95 cents", "3 quarters = $0.75", "3 * 25 = $0.75",
    "$1 - 35 cents = 65 cents", "$1.00 - $0.35 = 65 cents", "$1 - 0.35 = 65 cents", "2 dozen eggs + 6 eggs = 30 eggs",
    "2 dozen = 2 * 12 = 24", "1 gallon - 1 quart = 3 quarts", "50% + 25% = 75%", "50% + 25% = 0.75",
    "100% - 30% = 70%", "80 * 25% = 20", "80 - 25% = 60", "80 increased by 25% = 100", "120% of 50 = 60",
    "20 / 80 = 25%", "20 / 80 * 100 = 25%", "20/80 = 0.25 = 25 percent", "20 / 80 = 25 percent", "3/4 of 80 = 60",
    "3/4 of 80 apples = 60 apples", "two thirds of 9 = 6", "2/3 of 9 + 1 = 7", "1/2 of 8 + 4 = 6",
    "10% of 200 = 20% of 100", "The sum is 20% of 50 + 5 = 15", "1/3 of 9 = 3 = 9/3", "111_2 = 4 + 2 + 1 = 7",
    "(111)_2 = 7", "111 base 2 = 7", "1111 = 15 in base 2", "1010 + 110 = 10000", "A + 1 = B in hex",
    "FF = 15*16 + 15 = 255", "|{-5}| = 5", "|-5| + |3| = 8", "abs(-5) + 3 = 8", "||3| - |7|| = 4", r"\|(3, 4)\| = 5",
    r"\sqrt{3^2 + 4^2} = 5", "√2 ≈ 1.414 = 1.41", "√2 = 1.414", "√2 * √3 = 2.449", "√2 × 3 = 4.24", "2√2 = 2.83",
    "2√2 = 2.828", r"\sqrt{10} = 3.16", r"\sqrt{10} = 3.162", r"\sqrt{10} = 3.2", r"\sqrt{10} / 2 = 1.58",
    r"\frac{\sqrt{3}}{2} = 0.866", r"\frac{\sqrt{3}}{2} = 0.87", r"\frac{1 + \sqrt{5}}{2} = 1.618", r"\log_2 8 = 3",
    r"\log_{10}(50) = 1.7", r"\log(50) = 1.699", r"\ln 5 = 1.609", r"\ln(2) + \ln(3) = \ln(6)", "e^2 = 7.39",
    r"\pi r^2 = 78.5", r"\pi(5)^2 = 78.54", r"\pi \cdot 25 = 78.54", r"2\pi(7) = 44", r"2 * \pi * 7 = 43.98",
    "π × 3² = 28.27", r"\frac{22}{7} \cdot 49 = 154", r"\frac{4}{3}\pi(3)^3 = 36\pi", r"\frac{4}{3}\pi (3)^3 = 113.1",
    "10/3 = 3.33", "10/3 = 3.3", "10/3 = 3", "2/3 = 0.67", "2/3 = 0.66", "2/3 * 100 = 66.67", "2/3 * 100 = 67",
    "100 / 7 = 14.29", "1/7 = 0.142857", "1000 * 1.05^3 = 1157.63", "1000(1.05)^3 = 1157.625",
    r"C(5,2) = \frac{5!}{2!3!} = 10", r"\binom{5}{2} = \frac{5 \cdot 4}{2} = 10", r"{5 \choose 2} = 10", "_5P_2 = 20",
    "5P2 = 20", "0! = 1", "5! - 4! = 96", "5! / 3! = 20!", "(5-1)! = 24!", "3!! = 720", "7! = 5040, wow!",
    "f(2) = 2 * 2 + 1 = 5", "f(2) + 1 = 6", "f(2+3) = 10", r"\sum_{i=1}^{3} i = 6", r"\sum_{i=1}^{3} 2 = 6",
    r"\int_0^1 2x = 1", r"\prod_{i=1}^{3} i = 6", r"\lim_{x \to 0} 3 + 1 = 4", r"\frac{d}{dx} 3x = 3",
    r"\overline{3 + 4} = 7", r"\angle A + 3 = 40", r"\max(3, 4) + 1 = 5", r"\gcd(12, 18) + 1 = 7",
    r"\text{lcm}(4, 6) + 1 = 13", r"\operatorname{lcm}(4, 6) + 1 = 13", r"\text{gcd}(12,18) = 6", r"\phi(10) + 1 = 5",
    r"\tau(12) = 3 \cdot 2 = 6", r"\vec{a} \cdot \vec{b} = 1 \cdot 2 + 3 = 5", r"(1, 2) \cdot (3, 4) = 11",
    "(2, 3) + 1 = 4", "[1, 2] + [3] = [1, 2, 3]", "{1, 2} + 3 = 6", "3 + 4i + 2 = 5 + 4i", "(2 + i)(2 - i) = 5",
    r"i \cdot i + 2 = 1", "x^2 - 3x + 2 = 0", "2x + 3 = 7", "2(x) + 3 = 7", "2(n-1) + 3 = 7", "a_1 + 2 = 5",
    "a_{10} + 2 = 5", "3^x + 1 = 10", "3 + x/2 = 4", "2 - x-y = 4", "12xy - 3 = 0", "3m + 2n = 8", "4ab = 12",
    "5 + y = 8", "y-5 = 8", "the 3rd + 4 = 7", "Problem 3 + 4 = 8?", "Let 3 * 4 = 13 under the new operation.",
    "Suppose 3 + 4 = 8.", "What if 3 + 4 = 8?", "3 + 4 = 8 would be wrong.", "3 + 4 ≠ 8", "3 + 4 = 8 is not correct",
    "If 2 + 2 = 5, then I am the Pope.", "He thought 3 + 4 = 8 but that is a mistake.",
    "Instead of 3 + 4 = 8, we have 3 + 4 = 7.", "3 + 4 =? 8", "3 + 4 = 7 ± 1", "5 ± 2 = 7", "3 + 4 = 8 or 7",
    "3 + 4 = __", "3 + ___ = 7", "3 + ? = 7", "3 + □ = 7", "3 + 4 = 7 = 7.0", "1, 2, 3 + 4 = 7",
    "x = 3, y = 4, so xy = 12", "The ratio 3 : 4 = 6 : 8", "3:4 = 6:8", "3/4 = 6/8", "Pages 3-7 = 5 pages",
    "from 3-7 = 5 days", "2010 - 2020 = 10 years", "May 3 - May 7 = 4 days", "10 - 7 = 3 or 4", "Score: 3 - 2 = win",
    "9-5 = 8 hours", "9 - 5 = 8 hours", "9am - 5pm = 8 hours", "9 am to 5 pm = 8 hours", "1st + 2nd = 3rd",
    "1/2 + 1/2 = 2/2 = 1 whole", "1/2 = 2/4 = 50%", "12.5% = 1/8",
]
WRONG = [
    "7 + 5 = 13.", "3 * 4 = 13 apples", "2 + 2 = 5 with certainty", "2(3) = 5", "(2)(3) = 5", "2(3 + 4) = 13",
    r"3\sqrt{4} = 5", r"2\sqrt{3} = 2 + \sqrt{3}", r"\sqrt{2}(3) = 3 + \sqrt{2}", r"\sqrt{50} = 7.2",
    r"\sqrt{50} = 7.17", r"\pi * 4 = 12.7", r"\sqrt{50} = 6", r"\sqrt{3} + \sqrt{5} = \sqrt{8}", "5! = 100",
    "5! = 121!", "10*9*8*7*6*5*4*3*2=10", "3! + 4! = 7!", "7/2 = 3", "3/4 of 80 = 61", "20% of 50 = 11",
    "1.5 + 200 = 202.5", "5 boxes * 3 = 16 boxes", "18 / 3 = 5", "18 / 3 = 7 boxes", "$5 * 3 = $16",
    "60 - 20 = 50 minutes", "100 + 1 = 111", "19.99 * 3 = 59.98", "$2 + 3 = 6$ is the total.",
    "So there is a total of 3 + 4 = 8 apples.", r"\binom{5}{2} = 11", r"2\pi \cdot 3 = 5\pi",
    r"\frac{1}{2} + \frac{1}{3} = \frac{2}{5}", r"\frac{5!}{3!} = 60", r"\begin{aligned} 3 + 4 &= 8 \end{aligned}",
    "5 * 3 = 16 square feet", "So 16 - 9 = 8 eggs are left.", "She has 3 + 4 = 8 left over.",
    r"1 + 23*(-44) = -1013 is congruent to 1 \pmod{23}",
]


@pytest.fixture(scope="module")
def check():
    settings = SimpleNamespace(label=SimpleNamespace(verifier=VerifierConfig(timeout=10.0)))
    labeler = VerifierLabeler(SimpleNamespace(config=settings))
    yield lambda text: labeler.check(text).is_correct
    labeler.sympy.close()


def test_right_equations_are_called_right(check):
    assert [text for text in RIGHT if check(text) is not True] == []


def test_a_step_that_another_ordinary_reading_makes_true_is_not_called_wrong(check):
    assert [text for text in NOT_WRONG if check(text) is False] == []


def test_plainly_wrong_arithmetic_is_called_wrong(check):
    assert [text for text in WRONG if check(text) is not False] == []


@pytest.mark.parametrize("text", [
    r"\sqrt{50} = 7.07", r"\pi \cdot 4 = 12.57", "10/3 = 3.33", "89/3 = 29 boxes", "2x-y+4=0", "1.500 + 200 = 1.700",
    "1 hour - 20 minutes = 40 minutes", "$5 + 50 cents = $5.50",
])
def test_a_reading_that_is_not_the_plain_one_confirms_nothing(check, text):
    assert check(text) is None


@pytest.mark.parametrize(("side", "latex"), [
    ("2(3)", "6"),
    (r"2\sqrt{3}(4)", r"((2 \cdot \sqrt{3}) \cdot 4)"),
    (r"\frac{1}{2}\sqrt{2}\pi", r"((\frac{1}{2} \cdot \sqrt{2}) \cdot \pi)"),
    (r"-\sqrt{5} - 1", r"((0 - \sqrt{5}) - 1)"),
    (r"\sqrt[3]{2 + 3}", r"\sqrt[3]{5}"),
    (r"(1 + \sqrt{2})^2", r"((1 + \sqrt{2}))^{2}"),
])
def test_sympy_gets_every_product_and_bracket_written_out(side, latex):
    (equation,) = find_equations(f"{side} = 1")

    assert to_latex(equation.left) == latex
